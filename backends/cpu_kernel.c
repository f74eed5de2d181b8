/* A stage of a plan, and its noise, on memory that a CPU sees: each array is read and written once.

   It is what torch_triton.py is for a GPU, and is cut in the same programs: a program is one tile of one sample (diffcore/_philox.py),
   up to T blocks of four words, which are 4 T elements in a row. Noise, x-hat and sums of a program stay in the first-level
   cache. Loops are plain C that compilers turn into vector instructions, and no product is fused with a sum, so that the bits are
   those of diffcore.stage.advance, and are equal whatever the width of the vectors. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(_MSC_VER)
#define restrict __restrict
#endif

#define TILE 256
#define ROUNDS 10
#define STRIP 64
#define MEMORY 8 /* arrays that a plan may remember: cpu_threads.py says so too */
#define COLUMNS (MEMORY + 4)

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#else
#define INLINE static inline
#define UNROLL
#endif

/* One binary for all processors of a family: the widest vectors that the machine has are chosen when it is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__)
#define FOR_EVERY_WIDTH __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_WIDTH
#endif

/* The arrays of a stage; all but z are missing where a stage has none. */
enum { TO_Z, TO_X, Z, Y, OTHER, EPS, X, TABLE, KEYS, TO_M, M = TO_M + MEMORY, BUFFERS = M + MEMORY };

/* What the last column of a row multiplies: x-hat of the prediction `other`, or x-hat before it is clipped. */
enum { NO_SECOND, UNGUIDED, RAW };

typedef struct {
    uint32_t key[2];
    uint32_t draw, stream;
} Source;

/* A program's place: the elements of sample `sample` from `offset` on, `count` of them, made from `blocks` blocks. */
typedef struct {
    int64_t sample, offset;
    uint64_t block;
    int blocks, count;
} Place;

/* The coefficients of a sample: of x-hat (z and y), then rows for z and for each array of memory, of `columns` each; another set for
   each `frame` elements. Where `zeros`, terms of 0 count too, since they are not 0 everywhere. */
typedef struct {
    const double *first;
    int64_t frame;
    int memory, columns, width, second, zeros;
} Rows;

typedef uint32_t Words[4][TILE];

/* The four words of the blocks first, first + 1, ... of a tile: Salmon et al. 2011, sec. 3.3. A tile does not cross 2^32. */
INLINE void philox(Words w, const Source *source, uint64_t first, int blocks)
{
    const uint32_t key0 = source->key[0], key1 = source->key[1], draw = source->draw, stream = source->stream;
    const uint32_t low = (uint32_t)first, high = (uint32_t)(first >> 32);
    for (uint32_t i = 0; i < (uint32_t)blocks; i++) {
        uint32_t c0 = low + i, c1 = high, c2 = draw, c3 = stream;
        uint32_t k0 = key0, k1 = key1;
        UNROLL
        for (int round = 0; round < ROUNDS; round++) {
            const uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
            c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
            c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
            c1 = (uint32_t)p1;
            c3 = (uint32_t)p0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        w[0][i] = c0;
        w[1][i] = c1;
        w[2][i] = c2;
        w[3][i] = c3;
    }
}

INLINE float as_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t as_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* log u for u = (word + 1/2) / 2^32, relative to a few ulp at both ends: from u where it is small, else from 1 - u, which is exact there.
   With 2^k (1 + f) = u and 1/sqrt(2) <= 1 + f < sqrt(2), log u = k log 2 + log(1 + f), by the polynomial of Cephes. */
INLINE float log_uniform(uint32_t word)
{
    const uint32_t upper = 0u - (word >> 31);
    const float tail = ((float)(int32_t)(word ^ upper) + 0.5f) * 0x1p-32f; /* u or 1 - u, whichever is smaller */
    const int32_t exponent = (int32_t)(as_bits(tail) - 0x3F3504F3u) >> 23;
    const float mantissa = as_float(as_bits(tail) - ((uint32_t)exponent << 23));
    const int close = tail < 0.29289323f; /* 1 - tail > 1 / sqrt(2) */
    const float f = upper ? (close ? -tail : 1.0f - 2.0f * tail) : mantissa - 1.0f;
    const float k = (float)(upper ? (close ? 0 : -1) : exponent);
    const float square = f * f;
    float p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    p = p * f * square + k * -2.12194440e-4f - 0.5f * square; /* log 2 = 0.693359375 - 2.12194440e-4 */
    return (f + p) + k * 0.693359375f;
}

/* Two normals from two words; see diffcore._philox.pair. */
INLINE void pair_float(uint32_t first, uint32_t second, float *x, float *y)
{
    const float radius = sqrtf(-2.0f * log_uniform(first));
    const float angle = ((float)(int32_t)(second << 2) + 2.0f) * 3.657295198167899e-10f; /* pi / 2^33 */
    const float square = angle * angle;
    const float sine = ((-1.9515295891e-4f * square + 8.3321608736e-3f) * square - 1.6666654611e-1f) * square * angle + angle;
    const float cosine =
        ((2.443315711809948e-5f * square - 1.388731625493765e-3f) * square + 4.166664568298827e-2f) * square * square -
        0.5f * square + 1.0f;
    const uint32_t shifted = second + (1u << 29);
    const uint32_t odd = 0u - ((shifted >> 30) & 1u), swap = (as_bits(cosine) ^ as_bits(sine)) & odd;
    *x = radius * as_float(as_bits(cosine) ^ swap ^ ((shifted + (1u << 30)) & 0x80000000u));
    *y = radius * as_float(as_bits(sine) ^ swap ^ (shifted & 0x80000000u));
}

INLINE double as_double(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint64_t as_wide_bits(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* log u in double. Here u and f are exact as they stand, and with s = f / (2 + f), log(1 + f) = f - s (f - R(s^2)) keeps all digits of f,
   which is -(1 - u) near u = 1. R is the polynomial of fdlibm (e_log.c). Integers become doubles as the last bits of 2^52,
   since few processors convert vectors of 64-bit integers. */
INLINE double log_uniform_double(uint32_t word)
{
    const double scaled = as_double(0x4330000000000000u | word) - (0x1p52 - 0.5); /* word + 1/2 = 2^32 u */
    const uint64_t raised = as_wide_bits(scaled) + (0x3FF0000000000000u - 0x3FE6A09E667F3BCDu); /* the next exponent from sqrt(2) on */
    const double k = as_double(0x4330000000000000u | raised >> 52) - (0x1p52 + 1023.0 + 32.0);
    const double f = as_double((raised & 0xFFFFFFFFFFFFFu) + 0x3FE6A09E667F3BCDu) - 1.0;
    const double s = f / (2.0 + f), z = s * s;
    double r = 1.479819860511658591e-01;
    r = r * z + 1.531383769920937332e-01;
    r = r * z + 1.818357216161805012e-01;
    r = r * z + 2.222219843214978396e-01;
    r = r * z + 2.857142874366239149e-01;
    r = r * z + 3.999999999940941908e-01;
    r = r * z + 6.666666666666735130e-01;
    /* log 2 as a sum of two; the first times k is exact */
    return k * 6.93147180369123816490e-01 + (f - (s * (f - r * z) - k * 1.90821492927058770002e-10));
}

/* Two normals in double, of the angle pi x with |x| < 1/4, which is exact. Minimax polynomials in x^2 (Remez), off by 2^-58 of the sine
   and 2^-64 of the cosine. As log 2 above, pi is a sum of two, and the first times x is exact. */
INLINE void pair_double(uint32_t first, uint32_t second, double *x, double *y)
{
    const double radius = sqrt(-2.0 * log_uniform_double(first));
    const uint64_t shifted = (uint32_t)(second + (1u << 29));
    const double turn = as_double(0x4130000000000001u | (shifted << 1 & 0x7FFFFFFEu)) - (0x1p20 + 0.25); /* (2 r + 1) / 2^32 - 1/4 */
    const double z = turn * turn;
    double p = 4.615925728443214778e-04, q = -1.035778858950962357e-04;
    p = p * z - 7.370033847771125089e-03;
    p = p * z + 8.214587013029359137e-02;
    p = p * z - 5.992645289748776414e-01;
    p = p * z + 2.550164039874007080e+00;
    p = p * z - 5.167712780049959301e+00;
    p = p * z + 6.278329573009626434e-07;
    q = q * z + 1.929468173378577636e-03;
    q = q * z - 2.580688587932907090e-02;
    q = q * z + 2.353306302016082097e-01;
    q = q * z - 1.335262768852188311e+00;
    q = q * z + 4.058712126416750838e+00;
    q = q * z - 4.934802200544679267e+00;
    const double sine = turn * p + turn * 3.1415920257568359375, cosine = q * z + 1.0;
    const uint64_t odd = 0u - (shifted >> 30 & 1u), swap = (as_wide_bits(cosine) ^ as_wide_bits(sine)) & odd;
    *x = radius * as_double(as_wide_bits(cosine) ^ swap ^ ((shifted + (1u << 30)) << 32 & 0x8000000000000000u));
    *y = radius * as_double(as_wide_bits(sine) ^ swap ^ (shifted << 32 & 0x8000000000000000u));
}

#define REAL float
#define STORED float
#define LOAD(value) (value)
#define STORE(value) (value)
#define CONVERTS 0
#define OF(name) name##_float
#include "cpu_stage.h"

#define REAL double
#define STORED double
#define LOAD(value) (value)
#define STORE(value) (value)
#define CONVERTS 0
#define OF(name) name##_double
#include "cpu_stage.h"

/* bfloat16: the upper half of a float, rounded to the nearest, to even between two. */
INLINE uint16_t brain(float value)
{
    const uint32_t bits = as_bits(value);
    return value != value ? 0x7FC0 : (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

#define REAL float
#define STORED uint16_t
#define LOAD(value) as_float((uint32_t)(value) << 16)
#define STORE(value) brain(value)
#define CONVERTS 1
#define pair_brain pair_float
#define OF(name) name##_brain
#include "cpu_stage.h"

/* float16, by its bits too, since compilers convert it one by one: five bits of exponent, ten of mantissa. */
INLINE float from_half(uint16_t half)
{
    const uint32_t magnitude = (half & 0x7FFFu) << 13, sign = (half & 0x8000u) << 16;
    const uint32_t special = magnitude >= 0x0F800000u ? 0x7F800000u : 0u; /* infinite, or not a number */
    return as_float(as_bits(as_float(magnitude) * 0x1p112f) | special | sign);
}

INLINE uint16_t to_half(float value)
{
    const uint32_t sign = as_bits(value) >> 16 & 0x8000u, magnitude = as_bits(value) & 0x7FFFFFFFu;
    const uint32_t tiny = as_bits(as_float(magnitude) + 0.5f) - 0x3F000000u; /* the sum rounds at the last bit of a subnormal */
    const uint32_t normal = (magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1u)) >> 13;
    const uint32_t special = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
    return (uint16_t)(sign | (magnitude >= 0x47800000u ? special : magnitude < 0x38800000u ? tiny : normal));
}

#define REAL float
#define STORED uint16_t
#define LOAD(value) from_half(value)
#define STORE(value) to_half(value)
#define CONVERTS 1
#define pair_half pair_float
#define OF(name) name##_half
#include "cpu_stage.h"

FOR_EVERY_WIDTH static void bits_of_tile(uint32_t *to, const Source *source, uint64_t first, int blocks, int count)
{
    Words w;
    philox(w, source, first, blocks);
    for (int lane = 0, at = 0; at < count; lane++, at += blocks)
        memcpy(to + at, w[lane], sizeof(uint32_t) * (size_t)(count - at < blocks ? count - at : blocks));
}

static Place place(int64_t program, int64_t size)
{
    const int64_t tiles = (size + 4 * TILE - 1) / (4 * TILE), tile = program % tiles, left = size - tile * 4 * TILE;
    Place at = {program / tiles, tile * 4 * TILE, (uint64_t)tile * TILE, TILE, 4 * TILE};
    if (left < 4 * TILE) {
        at.count = (int)left;
        at.blocks = left < TILE ? (int)left : TILE;
    }
    return at;
}

typedef void (*Tile)(void *const *buffers, int64_t from, const Rows *rows, double low, double high, const Source *source, Place place);

/* The function for a kind of data: float, double, half precision, or bfloat16 as 16 bits without a sign. */
static Tile tile_for(char kind)
{
    switch (kind) {
    case 'f':
        return tile_float;
    case 'd':
        return tile_double;
    case 'H':
        return tile_brain;
    case 'e':
        return tile_half;
    default:
        return NULL;
    }
}

/* A stage on whole arrays: its rows of coefficients, samples times frames, or both 0 where one row is for all. */
typedef struct {
    Tile tile;
    void *buffers[BUFFERS];
    const double *first;
    int64_t samples, frames, size;
    int memory, second;
    double low, high;
    const uint32_t *keys;
    int64_t draw;
} StageJob;

/* Noise of a kind of data, or bits: of whole samples of `size` elements, or of `runs` runs of `size` elements of each sample, which
   begin at `starts` (low, high). */
typedef struct {
    char kind;
    void *to;
    const uint32_t *keys;
    int64_t draw, stream, size;
    const uint32_t *starts;
    int64_t runs;
} NoiseJob;

static int columns_of(int memory, int second)
{
    return memory + 3 + (second != NO_SECOND);
}

static int width_of(int memory, int second)
{
    return 2 + (1 + memory) * columns_of(memory, second);
}

static Source source_for(const uint32_t *keys, int64_t sample, int64_t draw, int64_t stream)
{
    return (Source){{keys[2 * sample], keys[2 * sample + 1]}, (uint32_t)draw, (uint32_t)stream};
}

static int64_t programs_of(int64_t items, int64_t size)
{
    return items / size * ((size + 4 * TILE - 1) / (4 * TILE));
}

/* The tiles that a run of this size meets at most, wherever it begins. */
static int64_t tiles_of_run(int64_t size)
{
    return (size + 8 * TILE - 2) / (4 * TILE);
}

static int64_t noise_programs(const NoiseJob *job, int64_t items)
{
    return job->starts == NULL ? programs_of(items, job->size) : items / job->size * tiles_of_run(job->size);
}

/* The programs from begin to end, one after another. */
static void run_stage(const void *told, int64_t begin, int64_t end)
{
    const StageJob *job = told;
    const int64_t a_sample = job->frames > 0 ? job->frames : 1;
    const int width = width_of(job->memory, job->second);
    for (int64_t program = begin; program < end; program++) {
        const Place at = place(program, job->size);
        Source source = {{0}, 0, 0};
        if (job->keys != NULL)
            source = source_for(job->keys, at.sample, job->draw, 0);
        const Rows rows = {
            .first = job->first + (job->samples > 1 ? at.sample * a_sample * width : 0),
            .frame = job->size / a_sample,
            .memory = job->memory,
            .columns = columns_of(job->memory, job->second),
            .width = width,
            .second = job->second,
            .zeros = job->samples > 0,
        };
        job->tile(job->buffers, at.sample * job->size + at.offset, &rows, job->low, job->high, job->keys == NULL ? NULL : &source, at);
    }
}

/* What a job lacks that it reads, in words, or NULL. Memory that it reads is there up to the last array. */
static const char *lacks(const StageJob *job)
{
    if (job->buffers[Y] == NULL && (job->buffers[X] == NULL || job->second == RAW))
        return "a stage needs y, or x, and y too for x-hat before its clip";
    if (job->buffers[OTHER] == NULL && job->second == UNGUIDED)
        return "a stage needs the unguided prediction that it reads";
    for (int i = 0; i < job->memory; i++)
        if (job->buffers[M + i] == NULL)
            return "a stage needs the memory that it reads";
    return NULL;
}

static void noise_of_tile(char kind, void *to, const Source *source, uint64_t first, int blocks, int count)
{
    if (kind == 'f')
        normals_float(to, source, first, blocks, count);
    else if (kind == 'd')
        normals_double(to, source, first, blocks, count);
    else
        bits_of_tile(to, source, first, blocks, count);
}

/* What a run of a sample has of one of the tiles that it meets: made from the whole tile, or, where it is short, lane by lane from the
   blocks of its elements alone. */
static void run_of_tile(const NoiseJob *job, int64_t program)
{
    const int64_t tiles = tiles_of_run(job->size), run = program / tiles;
    const uint32_t *start = job->starts + 2 * (run % job->runs);
    const uint64_t first = start[0] | (uint64_t)start[1] << 32, last = first + (uint64_t)job->size;
    const uint64_t tile = first / (4 * TILE) + (uint64_t)(program % tiles), corner = tile * (4 * TILE), next = corner + 4 * TILE;
    if (corner >= last)
        return;
    const int from = first > corner ? (int)(first - corner) : 0, until = last < next ? (int)(last - corner) : 4 * TILE;
    const Source source = source_for(job->keys, run / job->runs, job->draw, job->stream);
    const size_t item = job->kind == 'd' ? sizeof(double) : sizeof(float);
    char *to = (char *)job->to + ((uint64_t)(run * job->size) + (corner + (uint64_t)from - first)) * item;
    union {
        float f[4 * TILE];
        double d[4 * TILE];
        uint32_t u[4 * TILE];
    } some;
    if (until - from == 4 * TILE) {
        noise_of_tile(job->kind, to, &source, tile * TILE, TILE, 4 * TILE);
    } else if (until - from > TILE) {
        noise_of_tile(job->kind, &some, &source, tile * TILE, TILE, until);
        memcpy(to, (char *)&some + (size_t)from * item, (size_t)(until - from) * item);
    } else {
        for (int at = from, end; at < until; to += (size_t)(end - at) * item, at = end) {
            const int lane = at / TILE, blocks = (until < (lane + 1) * TILE ? until : (lane + 1) * TILE) - at;
            end = at + blocks;
            noise_of_tile(job->kind, &some, &source, tile * TILE + (uint64_t)(at % TILE), blocks, (lane + 1) * blocks);
            memcpy(to, (char *)&some + (size_t)(lane * blocks) * item, (size_t)blocks * item);
        }
    }
}

static void run_noise(const void *told, int64_t begin, int64_t end)
{
    const NoiseJob *job = told;
    const int64_t item = job->kind == 'd' ? sizeof(double) : sizeof(float);
    for (int64_t program = begin; program < end; program++) {
        if (job->starts != NULL) {
            run_of_tile(job, program);
            continue;
        }
        const Place at = place(program, job->size);
        const Source source = source_for(job->keys, at.sample, job->draw, job->stream);
        char *to = (char *)job->to + (at.sample * job->size + at.offset) * item;
        noise_of_tile(job->kind, to, &source, at.block, at.blocks, at.count);
    }
}

#include "cpu_xla.h"

/* -- Python ----------------------------------------------------------------------------------------------------------------- */

static int refuse(const char *what)
{
    PyErr_Format(PyExc_ValueError, "cpu_kernel: %s", what);
    return -1;
}

/* Take an array in one piece, of a kind as its buffer says it, or 'u' for 32 bits without a sign; None stays an empty view. */
static int take(Py_buffer *view, PyObject *array, int writable, char kind, Py_ssize_t items)
{
    if (array == Py_None)
        return 0;
    if (PyObject_GetBuffer(array, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0)) < 0)
        return -1;
    const char *format = view->format == NULL ? "B" : view->format;
    const int fits = kind == 'u' ? (*format == 'I' || *format == 'L') && view->itemsize == 4 : *format == kind;
    if (!fits || format[1] != '\0' || (uintptr_t)view->buf % (uintptr_t)view->itemsize)
        return refuse("an array of another dtype than the rest, or out of line with it");
    if (items >= 0 && view->len != items * view->itemsize)
        return refuse("an array of another size than the rest");
    return 0;
}

static void give_back(Py_buffer *views, int count)
{
    for (int i = 0; i < count; i++)
        if (views[i].obj != NULL)
            PyBuffer_Release(&views[i]);
}

static int whole(PyObject *number, int64_t *value)
{
    *value = PyLong_AsLongLong(number);
    return *value == -1 && PyErr_Occurred() != NULL ? -1 : 0;
}

/* The range asked for must lie within the programs that an array of `items` elements in samples of `size` has. */
static int check_range(Py_ssize_t items, int64_t size, int64_t begin, int64_t end, int64_t programs)
{
    if (size <= 0 || size > INT64_MAX - 8 * TILE || items % size)
        return refuse("samples do not fill the array");
    if (begin < 0 || begin > end || end > programs)
        return refuse("a range of programs that the array does not have");
    return 0;
}

PyDoc_STRVAR(noise_doc,
             "noise(to, keys, draw, stream, starts, size, begin, end)\n--\n\n"
             "Write the noise of some programs: bits into uint32, normals into float32 or float64. Of each sample all `size` elements, or,\n"
             "where `starts` is not None, runs of `size` elements in a row, which begin at `starts`, (runs, 2) (low, high).");

static PyObject *noise(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t given)
{
    Py_buffer views[3] = {{0}};
    int64_t draw, stream, size, begin, end;
    PyObject *result = NULL;
    if (given != 8) {
        refuse("noise takes 8 arguments");
        return NULL;
    }
    if (whole(args[2], &draw) || whole(args[3], &stream) || whole(args[5], &size) || whole(args[6], &begin) || whole(args[7], &end))
        return NULL;
    if (PyObject_GetBuffer(args[0], &views[0], PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE) < 0)
        return NULL;
    const char kind = views[0].format == NULL ? 'B' : *views[0].format;
    if (strchr("fdIL", kind) == NULL || (strchr("IL", kind) != NULL && views[0].itemsize != 4)) {
        refuse("noise is made in float32, float64 or uint32");
        goto done;
    }
    if (take(&views[1], args[1], 0, 'u', -1) || take(&views[2], args[4], 0, 'u', -1))
        goto done;
    const Py_ssize_t items = views[0].len / views[0].itemsize;
    const NoiseJob job = {kind, views[0].buf, views[1].buf, draw, stream, size, views[2].buf, views[2].len / 8};
    if (check_range(items, size, begin, end, size > 0 ? noise_programs(&job, items) : 0))
        goto done;
    if (views[1].len / 8 * (job.starts == NULL ? 1 : job.runs) != items / size || views[1].len % 8 || views[2].len % 8) {
        refuse("another number of seeds than samples");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    run_noise(&job, begin, end);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    give_back(views, 3);
    return result;
}

PyDoc_STRVAR(stage_doc,
             "stage(to_z, to_x, to_memory, z, y, other, eps, x, memory, table, index, samples, frames, keys, draw, second, low, high, size,\n"
             "begin, end)\n--\n\n"
             "Write what some programs make of stage `index`: the rows for which `to_z` and the tuple `to_memory` have an array, and x-hat.\n"
             "`x` where x-hat is there already, `keys` and `draw` instead of `eps` where noise is made; `second` is 0, 1 where the rows\n"
             "also read x-hat of `other`, 2 where they read that of `y` before it is clipped. The table has samples times frames rows a\n"
             "stage; both are 0 where one row is for all.");

/* Take a tuple of at most `most` arrays, some of which may be None. */
static Py_ssize_t take_all(Py_buffer *views, PyObject *arrays, Py_ssize_t most, int writable, char kind, Py_ssize_t items)
{
    if (!PyTuple_Check(arrays) || PyTuple_GET_SIZE(arrays) > most)
        return refuse("memory is a tuple of arrays, eight at most, and no more are written than are read");
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(arrays); i++)
        if (take(&views[i], PyTuple_GET_ITEM(arrays, i), writable, kind, items))
            return -1;
    return PyTuple_GET_SIZE(arrays);
}

static PyObject *stage(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t given)
{
    enum { AT_Z = 3, AT_MEMORY = 8, AT_KEYS = 13 };
    static const struct {
        int view, argument;
    } arrays[] = {{TO_Z, 0}, {TO_X, 1}, {Y, 4}, {OTHER, 5}, {EPS, 6}, {X, 7}};
    Py_buffer views[BUFFERS] = {{0}};
    int64_t index, samples, frames, draw, second, size, begin, end;
    PyObject *result = NULL;
    if (given != 21) {
        refuse("stage takes 21 arguments");
        return NULL;
    }
    const double low = PyFloat_AsDouble(args[16]), high = PyFloat_AsDouble(args[17]);
    if (PyErr_Occurred() || whole(args[10], &index) || whole(args[11], &samples) || whole(args[12], &frames) || whole(args[14], &draw) ||
        whole(args[15], &second) || whole(args[18], &size) || whole(args[19], &begin) || whole(args[20], &end))
        return NULL;
    if (PyObject_GetBuffer(args[AT_Z], &views[Z], PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0)
        return NULL;
    const char kind = views[Z].format == NULL ? 'B' : *views[Z].format;
    const Tile tile = tile_for(kind);
    if (tile == NULL || views[Z].format[1] != '\0' || (uintptr_t)views[Z].buf % (uintptr_t)views[Z].itemsize) {
        refuse("a stage takes aligned float32, float64, float16, or bfloat16 as uint16");
        goto done;
    }
    const Py_ssize_t items = views[Z].len / views[Z].itemsize;
    for (int i = 0; i < 6; i++)
        if (take(&views[arrays[i].view], args[arrays[i].argument], arrays[i].view <= TO_X, kind, items))
            goto done;
    const Py_ssize_t memory = take_all(&views[M], args[AT_MEMORY], MEMORY, 0, kind, items);
    if (memory < 0 || take_all(&views[TO_M], args[2], memory, 1, kind, items) < 0)
        goto done;
    if (take(&views[TABLE], args[9], 0, 'd', -1) || take(&views[KEYS], args[AT_KEYS], 0, 'u', -1) ||
        check_range(items, size, begin, end, size > 0 ? programs_of(items, size) : 0))
        goto done;
    if (args[AT_KEYS] != Py_None && views[KEYS].len != 8 * (items / size)) {
        refuse("another number of keys than samples");
        goto done;
    }
    if (second < NO_SECOND || second > RAW) {
        refuse("the second estimate is 0, 1 or 2");
        goto done;
    }
    if (samples < 0 || frames < 0 || (samples > 1 && samples != items / size) || (frames > 0 && size % frames) || (frames > 0 && samples == 0)) {
        refuse("rows for other samples or frames than there are");
        goto done;
    }
    const int width = width_of((int)memory, (int)second);
    const int64_t a_stage = (samples > 0 ? samples : 1) * (frames > 0 ? frames : 1);
    if (views[TABLE].ndim != 2 || views[TABLE].shape[1] != width || index < 0 || index >= views[TABLE].shape[0] / a_stage) {
        refuse("the table has no such row");
        goto done;
    }
    StageJob job = {
        .tile = tile,
        .first = (const double *)views[TABLE].buf + index * a_stage * width,
        .samples = samples,
        .frames = frames,
        .size = size,
        .memory = (int)memory,
        .second = (int)second,
        .low = low,
        .high = high,
        .keys = views[KEYS].buf,
        .draw = draw,
    };
    for (int i = 0; i < BUFFERS; i++)
        job.buffers[i] = views[i].buf;
    if (lacks(&job)) {
        refuse(lacks(&job));
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    run_stage(&job, begin, end);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    give_back(views, BUFFERS);
    return result;
}

static PyMethodDef functions[] = {
    {"noise", (PyCFunction)(void (*)(void))noise, METH_FASTCALL, noise_doc},
    {"stage", (PyCFunction)(void (*)(void))stage, METH_FASTCALL, stage_doc},
    {NULL, NULL, 0, NULL},
};

/* What XLA calls, as jax.ffi.register_ffi_target takes it. */
static int add_handlers(PyObject *module)
{
    const struct {
        const char *name;
        void *(*handler)(XlaFrame *);
    } handlers[] = {{"xla_noise", xla_noise}, {"xla_stage", xla_stage}};
    for (int i = 0; i < 2; i++) {
        void *address;
        memcpy(&address, &handlers[i].handler, sizeof address); /* ISO C has no cast from a function to data */
        PyObject *capsule = PyCapsule_New(address, NULL, NULL);
        const int failed = capsule == NULL || PyModule_AddObjectRef(module, handlers[i].name, capsule) < 0;
        Py_XDECREF(capsule);
        if (failed)
            return -1;
    }
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_handlers},
#if defined(Py_mod_gil)
    {Py_mod_gil, Py_MOD_GIL_NOT_USED}, /* nothing is shared but the caller's arrays */
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "cpu_kernel", .m_doc = "A stage of a plan, and its noise, on a CPU.", .m_methods = functions, .m_slots = slots,
};

PyMODINIT_FUNC PyInit_cpu_kernel(void)
{
    return PyModuleDef_Init(&definition);
}
