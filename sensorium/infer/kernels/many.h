/* Products of many rows: a panel of a weight is laid out in columns once, and all rows meet it while it is in the cache.

Each output is one chain of sums over k in rising order, the same for every number of rows and threads; it is another
chain than that of linear.h, so a call takes either. */
#ifndef SENSORIUM_MANY_H
#define SENSORIUM_MANY_H

#include "vector.h"

#define TALL (LANES == 16 ? 12 : LANES == 8 ? 6 : 4) /* rows of a tile: its sums fill the registers */
#define BROAD (2 * LANES)                            /* outputs of a panel */
#define DEEP 256                                     /* places of k in a panel: it stays in the first-level cache */

/* Outputs n.. of a weight (outputs, k) at places `from` to `from + deep`, as columns; zeros where there is no output. */
INLINE void lay_out(int type, const void *weight, int k, int n, int count, int from, int deep, float *panel) {
    for (int one = 0; one < BROAD; one++) {
        const size_t at = (size_t)(n + one) * k + from;
        if (one >= count)
            for (int i = 0; i < deep; i++) panel[(size_t)i * BROAD + one] = 0;
        else if (type == FLOAT32)
            for (int i = 0; i < deep; i++) panel[(size_t)i * BROAD + one] = ((const float *)weight)[at + i];
        else
            for (int i = 0; i < deep; i++) {
                uint32_t bits = (uint32_t)((const uint16_t *)weight)[at + i] << 16;
                memcpy(panel + (size_t)i * BROAD + one, &bits, 4);
            }
    }
}

/* `rows` <= TALL rows times a panel; sums go on from y unless `begin`. */
INLINE void tall_tile(const int rows, const float *x, size_t stride, const float *panel, int deep, int begin, int count,
                      float *y, size_t ld) {
    vf sum[TALL][2];
    for (int m = 0; m < rows; m++)
        for (int half = 0; half < 2; half++) {
            int some = count - half * LANES;
            sum[m][half] = begin || some <= 0 ? all(0) : load_some(y + m * ld + half * LANES, some);
        }
    for (int i = 0; i < deep; i++) {
        const vf left = load(panel + (size_t)i * BROAD), right = load(panel + (size_t)i * BROAD + LANES);
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++) {
            const vf a = all(x[m * stride + i]);
            sum[m][0] = add_product(sum[m][0], a, left);
            sum[m][1] = add_product(sum[m][1], a, right);
        }
    }
    for (int m = 0; m < rows; m++)
        for (int half = 0; half < 2; half++)
            if (count > half * LANES) store_some(y + m * ld + half * LANES, sum[m][half], count - half * LANES);
}

/* Outputs n0..n1 of all rows: y[i * ld + n]. x (rows, k) float32, rounded already where the weight's type wants it. */
static void many_rows(int type, const void *weight, int k, const float *x, int rows, int n0, int n1, float *y,
                      size_t ld) {
    float panel[BROAD * DEEP] __attribute__((aligned(64)));
    for (int n = n0; n < n1; n += BROAD) {
        const int count = n1 - n < BROAD ? n1 - n : BROAD;
        for (int from = 0; from < k; from += DEEP) {
            const int deep = k - from < DEEP ? k - from : DEEP;
            lay_out(type, weight, k, n, count, from, deep, panel);
            int m = 0;
#define TILES(TAKEN)                                                                                                  \
    for (; m + (TAKEN) <= rows; m += (TAKEN))                                                                         \
        tall_tile(TAKEN, x + (size_t)m * k + from, k, panel, deep, from == 0, count, y + m * ld + n, ld);
            TILES(TALL)
            TILES(2)
            TILES(1)
#undef TILES
        }
    }
}

#endif
