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
   samples is none, as in diffcore.stage.combine. */
typedef struct {
    int count;
    REAL c[COLUMNS];
    const REAL *part[COLUMNS];
} OF(Terms);

INLINE void OF(gather)(OF(Terms) *terms, const double *row, const REAL *const *parts, int columns, int zeros)
{
    terms->count = 0;
    for (int column = 0; column < columns; column++)
        if ((zeros || row[column] != 0.0) && parts[column] != NULL) {
            terms->c[terms->count] = (REAL)row[column];
            terms->part[terms->count++] = parts[column];
        }
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

/* What a tile makes, in strips: x-hat, unless it is given, the second estimate, and the rows that are wanted. */
typedef struct {
    OF(Terms) x, unguided, row[1 + MEMORY];
    STORED *to_x, *to[1 + MEMORY];
    const REAL *x_given;
    REAL low, high;
    int rows, second;
} OF(Stage);

/* One strip. Everything is read before anything is written, so that a result may lie over any of the arrays that are read. */
INLINE void OF(strip)(const OF(Stage) *s, REAL *x, REAL *second, int at, int count)
{
    REAL raw[STRIP], made[STRIP], others[MEMORY][STRIP]; /* most plans remember nothing: the one row stays in registers */
    if (s->x_given == NULL || s->second == RAW)
        OF(sum)(raw, &s->x, at, count);
    if (s->x_given == NULL)
        for (int i = 0; i < count; i++) { /* NaN stays NaN, and bounds that are infinite clip nothing */
            const REAL raised = s->low > raw[i] ? s->low : raw[i];
            x[i] = s->high < raised ? s->high : raised;
        }
    else if (s->to_x != NULL)
        memcpy(x, s->x_given + at, sizeof(REAL) * (size_t)count);
    if (s->second == RAW)
        memcpy(second, raw, sizeof(REAL) * (size_t)count);
    else if (s->second == UNGUIDED)
        OF(sum)(second, &s->unguided, at, count);
    if (s->rows > 0)
        OF(sum)(made, &s->row[0], at, count);
    for (int row = 1; row < s->rows; row++)
        OF(sum)(others[row - 1], &s->row[row], at, count);
    if (s->to_x != NULL)
        OF(store)(s->to_x + at, x, count);
    if (s->rows > 0)
        OF(store)(s->to[0] + at, made, count);
    for (int row = 1; row < s->rows; row++)
        OF(store)(s->to[row] + at, others[row - 1], count);
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
    REAL eps[4 * TILE], x[4 * TILE], second[4 * TILE], converted[CONVERTS ? COLUMNS + 2 : 1][4 * TILE];
    const int memory = rows->memory, columns = rows->columns;
#define PART(column, which) OF(part)(converted[CONVERTS ? (column) : 0], AT(which), place.count)
    const REAL *parts[COLUMNS] = {PART(0, Z)};
    for (int i = 0; i < memory; i++)
        parts[1 + i] = PART(1 + i, M + i);
    const REAL *x_given = PART(MEMORY + 2, X), *for_x[2] = {parts[0], PART(COLUMNS, Y)}, *unguided[2] = {parts[0], PART(COLUMNS + 1, OTHER)};
    parts[memory + 1] = source != NULL ? eps : PART(MEMORY + 1, EPS);
#undef PART
    parts[memory + 2] = x_given != NULL ? x_given : x;
    parts[memory + 3] = second; /* beyond the columns where there is none */
    if (source != NULL) {
        OF(normals)(eps, source, place.block, place.blocks, place.count);
        for (int i = 0; i < place.count; i++)
            eps[i] = LOAD(STORE(eps[i])); /* noise is drawn in the dtype of the data */
    }
    OF(Stage) stage; /* not all of it is set, nor read */
    stage.to_x = AT(TO_X), stage.x_given = x_given, stage.second = rows->second;
    stage.low = (REAL)low, stage.high = (REAL)high;
    for (int at = 0; at < place.count;) {
        const int64_t frame = (place.offset + at) / rows->frame, left = (frame + 1) * rows->frame - place.offset;
        const int end = left < place.count ? (int)left : place.count; /* of the frame, or of the tile */
        const double *row = rows->first + frame * rows->width;
        OF(gather)(&stage.x, row, for_x, 2, rows->zeros);
        OF(gather)(&stage.unguided, row, unguided, 2, rows->zeros);
        stage.rows = 0;
        for (int i = 0; i <= memory; i++) {
            STORED *to = i == 0 ? AT(TO_Z) : AT(TO_M + i - 1);
            if (to == NULL)
                continue;
            OF(gather)(&stage.row[stage.rows], row + 2 + i * columns, parts, columns, rows->zeros);
            stage.to[stage.rows++] = to;
        }
        for (; at + STRIP <= end; at += STRIP)
            OF(strip)(&stage, x + at, second + at, at, STRIP);
        if (at < end)
            OF(strip)(&stage, x + at, second + at, at, end - at);
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
