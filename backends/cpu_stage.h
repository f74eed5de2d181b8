/* What cpu_kernel.c does in one precision: REAL is float or double, OF(name) the name of a function in it. */

INLINE void OF(pairs)(const Words w, int lane, REAL *restrict x, REAL *restrict y, int blocks)
{
    for (int i = 0; i < blocks; i++)
        OF(pair)(w[lane][i], w[lane + 1][i], &x[i], &y[i]);
}

FOR_EVERY_WIDTH static void OF(normals)(REAL *restrict to, const Source *source, uint64_t first, int blocks, int count)
{
    Words w;
    REAL last[4 * TILE];
    REAL *lanes = count == 4 * blocks ? to : last; /* the last tile of a sample may end within a lane */
    philox(w, source, first, blocks);
    OF(pairs)(w, 0, lanes, lanes + blocks, blocks);
    if (count > 2 * blocks)
        OF(pairs)(w, 2, lanes + 2 * blocks, lanes + 3 * blocks, blocks);
    if (lanes == last)
        memcpy(to, last, sizeof(REAL) * (size_t)count);
}

/* The terms of a sum of coefficients times arrays. A coefficient of 0 is none, as in diffcore.sampling.combine. */
typedef struct {
    int count;
    REAL c[4 + HISTORY];
    const REAL *part[4 + HISTORY];
} OF(Terms);

INLINE OF(Terms) OF(terms)(const double *row, const REAL *const *parts, int columns)
{
    OF(Terms) terms = {0};
    for (int column = 0; column < columns; column++)
        if (row[column] != 0.0 && parts[column] != NULL) {
            terms.c[terms.count] = (REAL)row[column];
            terms.part[terms.count++] = parts[column];
        }
    return terms;
}

/* The sum from left to right, of the elements at .. at + count. */
INLINE void OF(sum)(REAL *restrict to, const OF(Terms) *terms, int at, int count)
{
    if (terms->count == 0)
        memset(to, 0, sizeof(REAL) * (size_t)count);
    for (int term = 0; term < terms->count; term++) {
        const REAL c = terms->c[term], *restrict part = terms->part[term] + at;
        if (term == 0)
            for (int i = 0; i < count; i++)
                to[i] = c * part[i];
        else
            for (int i = 0; i < count; i++)
                to[i] = to[i] + c * part[i];
    }
}

typedef struct {
    OF(Terms) x, z, saved;
    REAL low, high, *to_x, *to_z, *to_saved;
    int clips, makes_x;
} OF(Stage);

/* One strip: what is summed stays in registers. */
INLINE void OF(strip)(const OF(Stage) *s, REAL *restrict x, int at, int count)
{
    REAL total[STRIP];
    if (s->makes_x) {
        OF(sum)(x, &s->x, at, count);
        if (s->clips)
            for (int i = 0; i < count; i++) { /* NaN stays NaN */
                const REAL raised = x[i] > s->low || x[i] != x[i] ? x[i] : s->low;
                x[i] = raised < s->high || raised != raised ? raised : s->high;
            }
        if (s->to_x != NULL)
            memcpy(s->to_x + at, x, sizeof(REAL) * (size_t)count);
    }
    if (s->to_z != NULL) {
        OF(sum)(total, &s->z, at, count);
        memcpy(s->to_z + at, total, sizeof(REAL) * (size_t)count);
    }
    if (s->to_saved != NULL) {
        OF(sum)(total, &s->saved, at, count);
        memcpy(s->to_saved + at, total, sizeof(REAL) * (size_t)count);
    }
}

#define AT(which) (buffers[which] == NULL ? NULL : (REAL *)buffers[which] + from)

FOR_EVERY_WIDTH static void OF(tile)(void *const *buffers, int64_t from, const double *row, int columns, double low, double high,
                                     const Source *source, uint64_t first, int blocks, int count)
{
    REAL eps[4 * TILE], own[4 * TILE];
    const REAL *x = AT(X), *for_x[2] = {AT(Z), AT(Y)};
    const REAL *parts[4 + HISTORY] = {AT(Z), AT(SAVED), AT(EPS), x == NULL ? own : x};
    for (int back = 0; back < columns - 4; back++)
        parts[4 + back] = AT(PAST + back);
    if (source != NULL && (row[2 + 2] != 0.0 || row[2 + columns + 2] != 0.0)) {
        OF(normals)(eps, source, first, blocks, count);
        parts[2] = eps;
    }
    const OF(Stage) stage = {
        .x = OF(terms)(row, for_x, 2),
        .z = OF(terms)(row + 2, parts, columns),
        .saved = OF(terms)(row + 2 + columns, parts, columns),
        .low = (REAL)low,
        .high = (REAL)high,
        .to_x = AT(TO_X),
        .to_z = AT(TO_Z),
        .to_saved = AT(TO_SAVED),
        .clips = low > -INFINITY || high < INFINITY,
        .makes_x = x == NULL,
    };
    int at = 0;
    for (; at + STRIP <= count; at += STRIP)
        OF(strip)(&stage, own + at, at, STRIP);
    if (at < count)
        OF(strip)(&stage, own + at, at, count - at);
}

#undef AT
