/* Products of many rows with float32 or bfloat16: a panel of a weight is laid out in columns once, and all rows meet it
while it is in the cache.

Each output is one chain of sums over k in rising order, the same for every number of rows and threads; it is another
chain than that of linear.h, so a call takes either. */
#ifndef SENSORIUM_MANY_H
#define SENSORIUM_MANY_H

#include "call.h"
#include "rows.h"
#include "vector.h"

#define TALL (LANES == 16 ? 12 : LANES == 8 ? 6 : 4) /* rows of a tile: its sums fill the registers */
#define BROAD (2 * LANES)                            /* outputs of a panel */
#define DEEP 768 /* places of k in a panel: it stays in the second-level cache, and sums are rarely put down */

/* Where the CPU multiplies pairs of bfloat16, two neighbours of a line are one word, laid out and moved as a float is:
lines of an even k are lines of k / 2 words. */
INLINE int paired(int type, int k) {
#if defined(__AVX512BF16__)
    return type == BFLOAT16 && k % 2 == 0;
#else
    (void)type, (void)k;
    return 0;
#endif
}
/* sum + the word at x, which may be a pair, times those of `line`. */
INLINE vf add_word(const int pairs, vf sum, const float *x, vf line) {
#if defined(__AVX512BF16__)
    int32_t word;
    memcpy(&word, x, sizeof word);
    if (pairs) return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(word), (__m512bh)line);
#else
    (void)pairs;
#endif
    return add_product(sum, all(*x), line);
}

typedef uint16_t quarter __attribute__((vector_size(8)));
typedef uint32_t words __attribute__((vector_size(16)));

/* Four numbers of a weight at an index. */
INLINE quad four_at(int type, const void *weight, size_t at) {
    quad four;
    if (type == FLOAT32) memcpy(&four, (const float *)weight + at, sizeof four);
    else {
        quarter half;
        memcpy(&half, (const uint16_t *)weight + at, sizeof half);
        four = (quad)(__builtin_convertvector(half, words) << 16);
    }
    return four;
}

/* Four lines of four numbers become columns of a panel. */
INLINE void turn(const quad a, const quad b, const quad c, const quad d, float *panel) {
    const quad low = MIX(a, b, 0, 4, 1, 5), high = MIX(a, b, 2, 6, 3, 7);
    const quad lower = MIX(c, d, 0, 4, 1, 5), higher = MIX(c, d, 2, 6, 3, 7);
    const quad column[4] = {MIX(low, lower, 0, 1, 4, 5), MIX(low, lower, 2, 3, 6, 7), MIX(high, higher, 0, 1, 4, 5),
                            MIX(high, higher, 2, 3, 6, 7)};
    for (int i = 0; i < 4; i++) memcpy(panel + i * BROAD, column + i, sizeof column[i]);
}

/* Lines n.. of `count` <= BROAD, which begin `apart` numbers from each other, at places `from` to `from + deep`, as
columns; zeros where there is no line. */
INLINE void lay_out(int type, const void *lines, size_t apart, size_t n, int count, int from, int deep, float *panel) {
    for (int one = 0; one < BROAD; one += 4) {
        const size_t at = (n + one) * apart + from;
        int i = 0;
        if (one + 4 <= count)
            for (; i + 4 <= deep; i += 4)
                turn(four_at(type, lines, at + i), four_at(type, lines, at + apart + i),
                     four_at(type, lines, at + 2 * apart + i), four_at(type, lines, at + 3 * apart + i),
                     panel + (size_t)i * BROAD + one);
        for (; i < deep; i++)
            for (int j = 0; j < 4; j++) {
                float value = 0;
                const size_t place = at + j * apart + i;
                if (one + j < count && type == BFLOAT16) value = from_bf16(((const uint16_t *)lines)[place]);
                else if (one + j < count) memcpy(&value, (const char *)lines + 4 * place, sizeof value);
                panel[(size_t)i * BROAD + one + j] = value;
            }
    }
}

/* `rows` <= TALL rows times `count` <= BROAD columns, whose lines stand `apart` floats from each other; sums go on from y
unless `begin`, and are put at `to`, which may be y. `pairs`: floats of x and of the panel are pairs of bfloat16. */
INLINE void tall_tile(const int pairs, const int rows, const float *x, size_t stride, const float *panel, size_t apart,
                      int deep, int begin, int count, const float *y, size_t ld, float *to, size_t skip) {
    vf sum[TALL][2];
    for (int m = 0; m < rows; m++)
        for (int half = 0; half < 2; half++) {
            int some = count - half * LANES;
            sum[m][half] = begin || some <= 0 ? all(0) : load_some(y + m * ld + half * LANES, some);
        }
#define ADD(LEFT, RIGHT)                                                                                              \
    for (int i = 0; i < deep; i++) {                                                                                  \
        const float *line = panel + i * apart;                                                                        \
        const vf left = LEFT, right = RIGHT;                                                                          \
        _Pragma("GCC unroll 12") for (int m = 0; m < rows; m++) {                                                     \
            sum[m][0] = add_word(pairs, sum[m][0], x + m * stride + i, left);                                         \
            sum[m][1] = add_word(pairs, sum[m][1], x + m * stride + i, right);                                        \
        }                                                                                                             \
    }
    if (count == BROAD) {
        ADD(load(line), load(line + LANES))
    } else {
        ADD(load_some(line, count), count > LANES ? load_some(line + LANES, count - LANES) : all(0))
    }
#undef ADD
    for (int m = 0; m < rows; m++)
        for (int half = 0; half < 2; half++)
            if (count > half * LANES) store_some(to + m * skip + half * LANES, sum[m][half], count - half * LANES);
}

/* The panel that is laid out next is asked for while the tiles of one are computed, some lines of 64 bytes behind each. */
struct coming {
    const char *line;  /* of outputs that lie `apart` bytes from each other, NULL: none */
    size_t apart;
    int each, output, at, step; /* lines of an output; where it stands; lines at a time */
};
/* The panel of outputs n.. of n1 at places `from` on, for tiles of so many rows. */
INLINE struct coming coming_at(int type, const void *weight, int k, int n, int n1, int from, int rows) {
    const int size = type == FLOAT32 ? 4 : 2;
    if (n + BROAD > n1) return (struct coming){NULL, 0, 0, 0, 0, 0};
    const int deep = k - from < DEEP ? k - from : DEEP, each = (deep * size + 63) / 64;
    const char *line = (const char *)weight + ((size_t)n * k + from) * size;
    return (struct coming){line, (size_t)k * size, each, 0, 0, each * BROAD / (rows / TALL + 1) + 1};
}
INLINE void ask(struct coming *c) {
    for (int i = 0; c->line && i < c->step; i++) {
        __builtin_prefetch(c->line + c->output * c->apart + (size_t)c->at * 64);
        if (++c->at < c->each) continue;
        c->at = 0;
        if (++c->output == BROAD) c->line = NULL;
    }
}

/* Outputs n.. of a part, a panel of them, for all rows. input (rows, width) float32, rounded already where the weight's
type wants it; of pairs, each row fills the first half of its place. `then`: what this thread lays out next. */
static void many_panel(const struct call *c, const struct op *op, int which, int n, const float *input,
                       struct coming then) {
    float panel[BROAD * DEEP] __attribute__((aligned(64))), made[TALL * BROAD] __attribute__((aligned(64)));
    const struct part *part = &op->part[which];
    const void *weight = part->weight;
    const int pairs = paired(part->type, op->width), type = pairs ? FLOAT32 : part->type, k = op->width >> pairs;
    const int rows = c->rows;
    const int count = part->outputs - n < BROAD ? part->outputs - n : BROAD;
    const size_t outputs = (size_t)part->outputs;
    float *y = reg(c, part->to) + n, *to = target(c, op, which) + n;
    for (int from = 0; from < k; from += DEEP) {
        const int deep = k - from < DEEP ? k - from : DEEP, last = from + deep == k;
        struct coming next = last ? then : coming_at(type, weight, k, n, part->outputs, from + DEEP, rows);
        if (type == FLOAT32) lay_out(FLOAT32, weight, k, n, count, from, deep, panel);
        else lay_out(BFLOAT16, weight, k, n, count, from, deep, panel);
        int m = 0;
#define TILES(TAKEN)                                                                                                  \
    for (; m + (TAKEN) <= rows; m += (TAKEN)) {                                                                       \
        float *here = y + m * outputs;                                                                                \
        ask(&next);                                                                                                   \
        for (int row = 0; last && row < (TAKEN); row++) __builtin_prefetch(to + (m + row) * outputs, 1);              \
        const float *x = input + (size_t)m * op->width + from;                                                        \
        float *sums = last ? made : here;                                                                             \
        const size_t skip = last ? BROAD : outputs;                                                                   \
        if (pairs) tall_tile(1, TAKEN, x, op->width, panel, BROAD, deep, from == 0, count, here, outputs, sums, skip); \
        else tall_tile(0, TAKEN, x, op->width, panel, BROAD, deep, from == 0, count, here, outputs, sums, skip);      \
        if (last) finish(c, op, which, m, m + (TAKEN), n, n + count, made, BROAD);                                    \
    }
        TILES(TALL)
        TILES(4)
        TILES(2)
        TILES(1)
#undef TILES
    }
}

#endif
