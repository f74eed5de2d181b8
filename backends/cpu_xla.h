/* The same jobs as XLA calls them from a compiled program on a CPU: on its own memory and threads, without Python.

   The structures are the parts of xla/ffi/api/c_api.h that a handler of arrays needs, as they are in all versions from 0.1
   (jaxlib 0.5.0) to 0.5 (0.12.0); within a major version they only grow at their ends. tests/test_jax_kernel.py holds them to the
   header of the jaxlib that is installed. */

#if defined(_WIN32) || defined(__STDC_NO_ATOMICS__)
#define ALONE 1 /* on one thread */
#else
#define ALONE 0
#include <sched.h>
#include <stdatomic.h>
#endif

enum { XLA_METADATA = 1, XLA_EXECUTE = 3, XLA_INVALID_ARGUMENT = 3 };
enum { XLA_U32 = 8, XLA_F16 = 10, XLA_F32 = 11, XLA_F64 = 12, XLA_BF16 = 16 };

typedef struct {
    size_t struct_size;
    void *extension_start;
    int major_version, minor_version;
} XlaVersion;

typedef struct {
    size_t struct_size;
    int type;
    void *next;
} XlaExtension;

typedef struct {
    size_t struct_size;
    XlaVersion api_version;
} XlaMetadata;

typedef struct {
    XlaExtension extension_base;
    XlaMetadata *metadata;
} XlaMetadataExtension;

typedef struct {
    size_t struct_size;
    void *extension_start;
    int dtype;
    void *data;
    int64_t rank, *dims;
} XlaBuffer;

/* Arguments, and results. */
typedef struct {
    size_t struct_size;
    void *extension_start;
    int64_t size;
    int *types;
    XlaBuffer **buffers;
} XlaBuffers;

typedef struct {
    size_t struct_size;
    void *extension_start;
    const char *message;
    int errc;
} XlaErrorCreateArgs;

typedef struct {
    size_t struct_size;
    void *extension_start;
    void *error;
} XlaErrorDestroyArgs;

typedef struct {
    size_t struct_size;
    void *extension_start;
    void *ctx;
    void (*task)(void *data);
    void *data;
} XlaScheduleArgs;

typedef struct {
    size_t struct_size;
    void *extension_start;
    void *ctx;
    int64_t *num_threads;
} XlaNumThreadsArgs;

typedef struct {
    size_t struct_size;
    void *extension_start;
    XlaVersion api_version;
    void *internal_api;
    void *(*error_create)(XlaErrorCreateArgs *);
    void *error_get_message;
    void (*error_destroy)(XlaErrorDestroyArgs *);
    void *between[8];
    void *(*thread_pool_schedule)(XlaScheduleArgs *);
    void *(*thread_pool_num_threads)(XlaNumThreadsArgs *);
} XlaApi;

typedef struct {
    size_t struct_size;
    XlaExtension *extension_start;
    const XlaApi *api;
    void *ctx;
    int stage;
    XlaBuffers args, rets;
} XlaFrame;

static void *xla_refuse(const XlaFrame *frame, const char *what)
{
    XlaErrorCreateArgs args = {.struct_size = sizeof args, .message = what, .errc = XLA_INVALID_ARGUMENT};
    return frame->api->error_create(&args);
}

/* Whether there is nothing to execute; where XLA asks what a handler was written for, it is what is asked for. */
static int xla_asks(const XlaFrame *frame)
{
    if (frame->extension_start != NULL && frame->extension_start->type == XLA_METADATA) {
        XlaVersion *told = &((XlaMetadataExtension *)frame->extension_start)->metadata->api_version;
        told->major_version = 0;
        told->minor_version = frame->api != NULL && frame->api->api_version.major_version == 0 ? frame->api->api_version.minor_version : 1;
        return 1;
    }
    return frame->stage != XLA_EXECUTE;
}

typedef void (*Run)(const void *job, int64_t begin, int64_t end);

#if ALONE

static void xla_run(const XlaFrame *frame, Run run, const void *job, int64_t programs)
{
    run(job, 0, programs);
}

#else

#define TOGETHER 64 /* programs that a thread takes at a time, at least: tens of microseconds */
#define TURNS 8     /* how often one comes back for more, at most */

/* Programs that several threads take from. It lives until the last has let go of it; the job only until all are done. */
typedef struct {
    atomic_int_fast64_t next, done;
    atomic_int holders;
    int64_t programs, together;
    Run run;
    const void *job;
} Work;

static void take_programs(Work *work)
{
    for (;;) {
        const int64_t begin = atomic_fetch_add(&work->next, work->together), left = work->programs - begin;
        if (left <= 0)
            return;
        const int64_t count = left < work->together ? left : work->together;
        work->run(work->job, begin, begin + count);
        atomic_fetch_add(&work->done, count);
    }
}

static void let_go(Work *work)
{
    if (atomic_fetch_sub(&work->holders, 1) == 1)
        free(work);
}

static void xla_task(void *data)
{
    take_programs(data);
    let_go(data);
}

/* How many threads XLA has; an error counts as none. */
static int64_t xla_threads(const XlaFrame *frame)
{
    int64_t threads = 0;
    XlaNumThreadsArgs args = {.struct_size = sizeof args, .ctx = frame->ctx, .num_threads = &threads};
    void *error = frame->api->thread_pool_num_threads(&args);
    if (error == NULL)
        return threads;
    XlaErrorDestroyArgs destroy = {.struct_size = sizeof destroy, .error = error};
    frame->api->error_destroy(&destroy);
    return 0;
}

/* Run a job on this thread and on those of XLA that come in time. */
static void xla_run(const XlaFrame *frame, Run run, const void *job, int64_t programs)
{
    const int64_t threads = programs > TOGETHER ? xla_threads(frame) : 0;
    Work *work = threads > 1 ? malloc(sizeof *work) : NULL;
    if (work == NULL) {
        run(job, 0, programs);
        return;
    }
    const int64_t turn = programs / (TURNS * threads), together = turn > TOGETHER ? turn : TOGETHER;
    const int64_t parts = (programs + together - 1) / together, most = parts < threads ? parts : threads;
    work->programs = programs;
    work->together = together;
    work->run = run;
    work->job = job;
    atomic_init(&work->next, 0);
    atomic_init(&work->done, 0);
    atomic_init(&work->holders, (int)most);
    for (int64_t other = 1; other < most; other++) {
        XlaScheduleArgs args = {.struct_size = sizeof args, .ctx = frame->ctx, .task = xla_task, .data = work};
        void *error = frame->api->thread_pool_schedule(&args);
        if (error != NULL) {
            XlaErrorDestroyArgs destroy = {.struct_size = sizeof destroy, .error = error};
            frame->api->error_destroy(&destroy);
            let_go(work);
        }
    }
    take_programs(work);
    while (atomic_load(&work->done) < programs) /* what others began; what they did not begin is none */
        sched_yield();
    let_go(work);
}

#endif

static int64_t xla_items(const XlaBuffer *buffer)
{
    int64_t items = 1;
    for (int64_t axis = 0; axis < buffer->rank; axis++)
        items *= buffer->dims[axis];
    return items;
}

static char xla_kind(const XlaBuffer *buffer)
{
    switch (buffer->dtype) {
    case XLA_F32:
        return 'f';
    case XLA_F64:
        return 'd';
    case XLA_BF16:
        return 'H';
    case XLA_F16:
        return 'e';
    case XLA_U32:
        return 'u';
    default:
        return '?';
    }
}

static double xla_number(const XlaBuffer *buffer, int64_t at)
{
    return buffer->dtype == XLA_F64 ? ((const double *)buffer->data)[at] : (double)((const float *)buffer->data)[at];
}

/* (seeds, (draw, stream), starts of the runs of each sample, none for whole samples) -> bits or normals. */
static void *xla_noise(XlaFrame *frame)
{
    if (xla_asks(frame))
        return NULL;
    if (frame->args.size != 3 || frame->rets.size != 1)
        return xla_refuse(frame, "diffcore_noise: takes three arrays and gives one");
    XlaBuffer *const *args = frame->args.buffers;
    const XlaBuffer *seeds = args[0], *source = args[1], *starts = args[2], *to = frame->rets.buffers[0];
    const int64_t items = xla_items(to), samples = to->rank > 0 ? to->dims[0] : 0, runs = xla_items(starts) / 2;
    const int64_t rows = samples * (runs > 0 ? runs : 1);
    const char kind = xla_kind(to);
    if (xla_kind(seeds) != 'u' || xla_kind(source) != 'u' || xla_kind(starts) != 'u' || strchr("fdu", kind) == NULL)
        return xla_refuse(frame, "diffcore_noise: seeds, source and starts are uint32, noise is float32, float64 or uint32");
    if (items <= 0 || xla_items(seeds) != 2 * samples || xla_items(source) != 2 || items % rows)
        return xla_refuse(frame, "diffcore_noise: another number of seeds than samples, or of elements than runs, or none");
    const uint32_t *number = source->data;
    const NoiseJob job = {kind, to->data, seeds->data, number[0], number[1], items / rows, runs > 0 ? starts->data : NULL, runs};
    xla_run(frame, run_noise, &job, noise_programs(&job, items));
    return NULL;
}

/* (z, y, x, other, eps, keys, row, bounds, numbers, *memory) -> (z, x, *memory), those that there are not without elements. The
   numbers are the draw, the turn, how many rows of memory only move up, whether the one before those, the head, keeps x-hat, and
   what the second estimate is. Memory that is given back as a whole lies where it lay: the head and what moves up are then slots, of
   which what was made in turn i lies in slot i modulo their number. Else the rows that are made are given back. */
static void *xla_stage(XlaFrame *frame)
{
    enum { AT_Z, AT_Y, AT_X, AT_OTHER, AT_EPS, AT_KEYS, AT_ROW, AT_BOUNDS, AT_NUMBERS, AT_MEMORY };
    enum { TO_Z_AT, TO_X_AT, TO_MEMORY_AT };
    static const int places[] = {Z, Y, X, OTHER, EPS};
    if (xla_asks(frame))
        return NULL;
    XlaBuffer *const *args = frame->args.buffers, *const *rets = frame->rets.buffers;
    const int64_t memory = frame->args.size - AT_MEMORY, kept = frame->rets.size - TO_MEMORY_AT;
    if (memory < 0 || memory > MEMORY || kept < 0)
        return xla_refuse(frame, "diffcore_stage: another number of arrays than it takes and gives");
    if (xla_kind(args[AT_NUMBERS]) != 'u' || xla_items(args[AT_NUMBERS]) != 5)
        return xla_refuse(frame, "diffcore_stage: takes five numbers, in uint32");
    const uint32_t *numbers = args[AT_NUMBERS]->data, turn = numbers[1], shifted = numbers[2], keeps_x = numbers[3], second = numbers[4];
    const int64_t computed = memory - shifted, slots = 1 + (int64_t)shifted, head = computed - 1;
    if (second > RAW || keeps_x > 1 || (memory > 0 ? computed < 1 : shifted || keeps_x) || (kept != memory && kept != computed))
        return xla_refuse(frame, "diffcore_stage: another form than its memory has");
    const XlaBuffer *z = args[AT_Z], *row = args[AT_ROW], *bounds = args[AT_BOUNDS], *keys = args[AT_KEYS];
    const int64_t items = xla_items(z), batch = z->rank > 0 ? z->dims[0] : 0, count = xla_items(row);
    StageJob job = {.tile = tile_for(xla_kind(z)), .memory = (int)memory, .second = (int)second, .draw = numbers[0]};
    if (job.tile == NULL || items <= 0)
        return xla_refuse(frame, "diffcore_stage: takes float32, float64, float16 or bfloat16, and not nothing");
    for (int64_t i = 0; i < frame->args.size + frame->rets.size; i++) {
        const XlaBuffer *array = i < frame->args.size ? args[i] : rets[i - frame->args.size];
        const int optional = (i >= AT_Y && i <= AT_EPS) || i == frame->args.size + TO_X_AT;
        if (i >= AT_KEYS && i <= AT_NUMBERS)
            continue;
        if ((xla_items(array) != items && !(optional && xla_items(array) == 0)) || array->dtype != z->dtype)
            return xla_refuse(frame, "diffcore_stage: arrays of several sizes or dtypes");
    }
    for (int i = AT_Z; i <= AT_EPS; i++)
        if (xla_items(args[i]) != 0)
            job.buffers[places[i]] = args[i]->data;
    for (int64_t i = 0; i < memory; i++) {
        const int64_t slot = head + ((int64_t)turn - 1 - (i - head) + slots) % slots;
        job.buffers[M + i] = args[AT_MEMORY + (kept == memory && i >= head ? slot : i)]->data;
        if (kept == memory && shifted && i >= head && args[AT_MEMORY + i]->data != rets[TO_MEMORY_AT + i]->data)
            return xla_refuse(frame, "diffcore_stage: slots that do not lie over the memory");
    }
    job.buffers[TO_Z] = rets[TO_Z_AT]->data;
    for (int64_t i = 0; i < computed; i++)
        job.buffers[TO_M + i] = rets[TO_MEMORY_AT + (kept == memory && i == head ? head + turn % slots : i)]->data;
    if (xla_items(rets[TO_X_AT]) != 0) {
        job.buffers[TO_X] = rets[TO_X_AT]->data;
    } else if (keeps_x) {
        job.buffers[TO_X] = job.buffers[TO_M + head];
        job.buffers[TO_M + head] = NULL;
    }
    job.size = items / batch;
    job.samples = row->rank > 1 ? row->dims[0] : 0;
    job.frames = row->rank > 2 ? row->dims[1] : 0;
    const int width = width_of(job.memory, job.second), columns = columns_of(job.memory, job.second);
    if (row->rank < 1 || row->rank > 3 || row->dims[row->rank - 1] != width || count <= 0 || strchr("fd", xla_kind(row)) == NULL ||
        bounds->dtype != row->dtype || xla_items(bounds) != 2 || (job.samples > 1 && job.samples != batch) ||
        (job.frames > 0 && job.size % job.frames) || xla_kind(keys) != 'u' || (xla_items(keys) != 0 && xla_items(keys) != 2 * batch))
        return xla_refuse(frame, "diffcore_stage: coefficients, bounds or keys for other arrays");
    if (lacks(&job) != NULL)
        return xla_refuse(frame, "diffcore_stage: a prediction that it reads is not there");
    double *rows = malloc(sizeof(double) * (size_t)count);
    if (rows == NULL)
        return xla_refuse(frame, "diffcore_stage: no memory for the coefficients");
    int noisy = 0;
    for (int64_t i = 0; i < count; i++) {
        rows[i] = xla_number(row, i);
        noisy |= i % width >= 2 && (i % width - 2) % columns == memory + 1 && rows[i] != 0.0;
    }
    job.first = rows;
    job.low = xla_number(bounds, 0);
    job.high = xla_number(bounds, 1);
    job.keys = noisy && xla_items(keys) != 0 ? keys->data : NULL;
    xla_run(frame, run_stage, &job, programs_of(items, job.size));
    free(rows);
    return NULL;
}
