/* What cpu_kernel.c does for one kind of data: STORED in memory, computed in REAL; LOAD and STORE convert, and OF(name) is the name
   of a function for the kind. */

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

/* What a sum reads: an array in memory, or one of this tile that was computed just now. */
typedef struct {
    const STORED *stored;
    const REAL *local;
} OF(Part);

/* The terms of a sum of coefficients times arrays. A coefficient of 0 that holds for all samples is none, as in
   diffcore.sampling.combine. */
typedef struct {
    int count;
    REAL c[4 + HISTORY];
    OF(Part) part[4 + HISTORY];
} OF(Terms);

INLINE OF(Terms) OF(terms)(const double *row, const OF(Part) *parts, int columns, int zeros)
{
    OF(Terms) terms = {0};
    for (int column = 0; column < columns; column++)
        if ((zeros || row[column] != 0.0) && (parts[column].stored != NULL || parts[column].local != NULL)) {
            terms.c[terms.count] = (REAL)row[column];
            terms.part[terms.count++] = parts[column];
        }
    return terms;
}

/* The sum from left to right, of the elements at .. at + count. */
INLINE void OF(sum)(REAL *restrict to, const OF(Terms) *terms, int at, int count)
{
    for (int i = 0; i < count; i++)
        to[i] = 0;
    for (int term = 0; term < terms->count; term++) {
        const OF(Part) part = terms->part[term];
        const REAL c = terms->c[term];
        REAL product[STRIP];
        if (part.local != NULL) {
            const REAL *restrict local = part.local + at;
            for (int i = 0; i < count; i++)
                product[i] = c * local[i];
        } else {
            const STORED *restrict stored = part.stored + at;
            for (int i = 0; i < count; i++)
                product[i] = c * LOAD(stored[i]);
        }
        for (int i = 0; i < count; i++)
            to[i] = term == 0 ? product[i] : to[i] + product[i];
    }
}

INLINE void OF(store)(STORED *restrict to, const REAL *restrict from, int count)
{
    for (int i = 0; i < count; i++)
        to[i] = STORE(from[i]);
}

typedef struct {
    OF(Terms) x, z, saved;
    REAL low, high;
    STORED *to_x, *to_z, *to_saved;
    int clips, makes_x;
} OF(Stage);

/* One strip: what is summed stays in registers. */
INLINE void OF(strip)(const OF(Stage) *s, REAL *x, int at, int count)
{
    REAL total[STRIP];
    if (s->makes_x) {
        OF(sum)(total, &s->x, at, count);
        for (int i = 0; i < count; i++) { /* NaN stays NaN */
            const REAL raised = !s->clips || total[i] >= s->low || total[i] != total[i] ? total[i] : s->low;
            x[i] = !s->clips || raised <= s->high || raised != raised ? raised : s->high;
        }
        if (s->to_x != NULL)
            OF(store)(s->to_x + at, x, count);
    }
    if (s->to_z != NULL) {
        OF(sum)(total, &s->z, at, count);
        OF(store)(s->to_z + at, total, count);
    }
    if (s->to_saved != NULL) {
        OF(sum)(total, &s->saved, at, count);
        OF(store)(s->to_saved + at, total, count);
    }
}

#define AT(which) (buffers[which] == NULL ? NULL : (STORED *)buffers[which] + from)

FOR_EVERY_WIDTH static void OF(tile)(void *const *buffers, int64_t from, const Rows *rows, double low, double high, const Source *source,
                                     Place place)
{
    REAL eps[4 * TILE], own[4 * TILE];
    const int columns = rows->columns;
    const OF(Part) for_x[2] = {{.stored = AT(Z)}, {.stored = AT(Y)}};
    OF(Part) parts[4 + HISTORY] = {{.stored = AT(Z)}, {.stored = AT(SAVED)}, {.stored = AT(EPS)}, {.stored = AT(X)}};
    for (int back = 0; back < columns - 4; back++)
        parts[4 + back].stored = AT(PAST + back);
    if (buffers[X] == NULL)
        parts[3].local = own;
    if (source != NULL) {
        OF(normals)(eps, source, place.block, place.blocks, place.count);
        for (int i = 0; i < place.count; i++)
            eps[i] = LOAD(STORE(eps[i])); /* noise is drawn in the dtype of the data */
        parts[2].local = eps;
    }
    for (int at = 0; at < place.count;) {
        const int64_t frame = (place.offset + at) / rows->frame, left = (frame + 1) * rows->frame - place.offset;
        const int end = left < place.count ? (int)left : place.count; /* of the frame, or of the tile */
        const double *row = rows->first + frame * (2 + 2 * columns);
        const OF(Stage) stage = {
            .x = OF(terms)(row, for_x, 2, rows->zeros),
            .z = OF(terms)(row + 2, parts, columns, rows->zeros),
            .saved = OF(terms)(row + 2 + columns, parts, columns, rows->zeros),
            .low = (REAL)low,
            .high = (REAL)high,
            .to_x = AT(TO_X),
            .to_z = AT(TO_Z),
            .to_saved = AT(TO_SAVED),
            .clips = low > -INFINITY || high < INFINITY,
            .makes_x = buffers[X] == NULL,
        };
        for (; at + STRIP <= end; at += STRIP)
            OF(strip)(&stage, own + at, at, STRIP);
        if (at < end)
            OF(strip)(&stage, own + at, at, end - at);
        at = end;
    }
}

#undef AT
#undef REAL
#undef STORED
#undef LOAD
#undef STORE
#undef OF
