/* What cpu_kernel.c does for one kind of data: STORED in memory, computed in REAL; LOAD and STORE convert, where CONVERTS, and
   OF(name) is the name of a function for the kind. */

INLINE void OF(pairs)(Words w, int lane, REAL *restrict x, REAL *restrict y, int blocks)
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

/* The terms of a sum of coefficients times arrays, each from the start of the tile on. A coefficient of 0 that holds for all
   samples is none, as in diffcore.sampling.combine. */
typedef struct {
    int count;
    REAL c[4 + HISTORY];
    const REAL *part[4 + HISTORY];
} OF(Terms);

INLINE OF(Terms) OF(terms)(const double *row, const REAL *const *parts, int columns, int zeros)
{
    OF(Terms) terms = {0};
    for (int column = 0; column < columns; column++)
        if ((zeros || row[column] != 0.0) && parts[column] != NULL) {
            terms.c[terms.count] = (REAL)row[column];
            terms.part[terms.count++] = parts[column];
        }
    return terms;
}

/* The sum from left to right, of the elements at .. at + count: up to four terms in a pass. */
INLINE void OF(sum)(REAL *restrict to, const OF(Terms) *terms, int at, int count)
{
#define TERM(k) (terms->c[k] * terms->part[k][at + i])
#define PASS(total) \
    for (int i = 0; i < count; i++) \
    to[i] = (total)
    switch (terms->count) {
    case 0:
        PASS(0);
        return;
    case 1:
        PASS(TERM(0));
        return;
    case 2:
        PASS(TERM(0) + TERM(1));
        return;
    case 3:
        PASS(TERM(0) + TERM(1) + TERM(2));
        return;
    default:
        PASS(TERM(0) + TERM(1) + TERM(2) + TERM(3));
    }
    for (int term = 4; term < terms->count; term++)
        PASS(to[i] + TERM(term));
#undef PASS
#undef TERM
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
    const REAL *x_given; /* or it is made */
} OF(Stage);

/* One strip: what is summed stays in registers. Everything is read before anything is written, so that a result may lie over any
   of the arrays that are read. */
INLINE void OF(strip)(const OF(Stage) *s, REAL *x, int at, int count)
{
    REAL z[STRIP], saved[STRIP];
    if (s->x_given == NULL) {
        OF(sum)(z, &s->x, at, count);
        for (int i = 0; i < count; i++) { /* NaN stays NaN, and bounds that are infinite clip nothing */
            const REAL raised = s->low > z[i] ? s->low : z[i];
            x[i] = s->high < raised ? s->high : raised;
        }
    } else if (s->to_x != NULL) {
        memcpy(x, s->x_given + at, sizeof(REAL) * (size_t)count);
    }
    if (s->to_z != NULL)
        OF(sum)(z, &s->z, at, count);
    if (s->to_saved != NULL)
        OF(sum)(saved, &s->saved, at, count);
    if (s->to_x != NULL)
        OF(store)(s->to_x + at, x, count);
    if (s->to_z != NULL)
        OF(store)(s->to_z + at, z, count);
    if (s->to_saved != NULL)
        OF(store)(s->to_saved + at, saved, count);
}

/* An array of the tile in the kind that it is computed in: itself, or its numbers in memory of the tile. */
INLINE const REAL *OF(part)(REAL *memory, const STORED *stored, int count)
{
    if (stored == NULL || !CONVERTS)
        return (const REAL *)(const void *)stored;
    for (int i = 0; i < count; i++)
        memory[i] = LOAD(stored[i]);
    return memory;
}

#define AT(which) (buffers[which] == NULL ? NULL : (STORED *)buffers[which] + from)

FOR_EVERY_WIDTH static void OF(tile)(void *const *buffers, int64_t from, const Rows *rows, double low, double high, const Source *source,
                                     Place place)
{
    REAL eps[4 * TILE], own[4 * TILE], memory[CONVERTS ? 5 + HISTORY : 1][4 * TILE];
    const int columns = rows->columns;
#define PART(column, which) OF(part)(memory[CONVERTS ? (column) : 0], AT(which), place.count)
    const REAL *parts[4 + HISTORY] = {PART(0, Z), PART(1, SAVED), PART(2, EPS), PART(3, X)};
    for (int back = 0; back < columns - 4; back++)
        parts[4 + back] = PART(4 + back, PAST + back);
    const REAL *for_x[2] = {parts[0], PART(4 + HISTORY, Y)}, *x_given = parts[3];
#undef PART
    if (x_given == NULL)
        parts[3] = own;
    if (source != NULL) {
        OF(normals)(eps, source, place.block, place.blocks, place.count);
        for (int i = 0; i < place.count; i++)
            eps[i] = LOAD(STORE(eps[i])); /* noise is drawn in the dtype of the data */
        parts[2] = eps;
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
            .x_given = x_given,
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
#undef CONVERTS
#undef OF
