/* Attention of prompts: tokens of a slot that follow each other read blocks of keys together (Dao 2023, arXiv 2307.08691,
section 3: shares are rescaled when a higher score comes).

Blocks of keys begin at places that are multiples of BLOCK, and what a token does not see counts as nothing: what it gets
is the same to the last bit wherever the prompt is cut. */
#ifndef SENSORIUM_ATTEND_MANY_H
#define SENSORIUM_ATTEND_MANY_H

#include "attend.h"
#include "many.h"

#define TOKENS 48 /* that read together */
#define BLOCK 128 /* keys, a multiple of BROAD */

/* Floats that a thread needs: queries, what they read, scores, highest scores and sums of shares, a panel of keys or
values. */
INLINE size_t together_floats(int heads, int kv_heads, int width) {
    const size_t rows = (size_t)TOKENS * (heads / kv_heads), wide = (size_t)(width + LANES);
    return rows * (2 * wide + BLOCK + 2) + BROAD * (wide > BLOCK ? wide : BLOCK) + 4 * LANES;
}

/* Tokens from `first` on that stand one behind another in a slot, TOKENS at most. */
INLINE int reading(const struct heads *h, int rows, int first) {
    int count = 1;
    while (count < TOKENS && first + count < rows && h->slots[first + count] == h->slots[first] &&
           h->places[first + count] == h->places[first] + count)
        count++;
    return count;
}

/* rows x panel of columns that stand `apart` floats from each other, in tiles. */
INLINE void tiles(int rows, const float *x, size_t stride, const float *panel, size_t apart, int deep, int begin,
                  int count, float *y, size_t ld) {
    int m = 0;
#define TILES(TAKEN)                                                                                                  \
    for (; m + (TAKEN) <= rows; m += (TAKEN), y += (TAKEN) * ld)                                                      \
        tall_tile(0, TAKEN, x + m * stride, stride, panel, apart, deep, begin, count, y, ld, y, ld);
    TILES(TALL)
    TILES(2)
    TILES(1)
#undef TILES
}

/* Scores of a row become shares: of a block of keys it sees those from `low` to before `high`. Returns by what what was
read before is multiplied. */
INLINE float soften_block(const struct heads *h, float *score, int low, int high, float *most, float *sum) {
    vf largest = all(*most), added = all(0);
    if (h->cap > 0)
        for (int j = 0; j < BLOCK; j += LANES)
            store(score + j, h->cap * hyperbolic_tangent(load(score + j) / h->cap));
    for (int j = 0; j < low; j++) score[j] = -INFINITY;
    for (int j = high; j < BLOCK; j++) score[j] = -INFINITY;
    for (int j = 0; j < BLOCK; j += LANES) largest = larger(largest, load(score + j));
    const float best = highest(largest), last = *most;
    if (best == -INFINITY) { /* nothing is seen so far */
        memset(score, 0, sizeof(float) * BLOCK);
        return 1;
    }
    for (int j = 0; j < BLOCK; j += LANES) {
        const vf share = exponential(load(score + j) - best);
        store(score + j, share);
        added += share;
    }
    float factor = 1;
    if (best > last) {
        const vf again = exponential(all(last - best));
        factor = last == -INFINITY ? 0 : again[0];
    }
    *sum = *sum * factor + total(added);
    *most = best;
    return factor;
}

/* The part of a block of keys from `first` on that stands before `place`. */
INLINE int before(int64_t place, int64_t first) {
    return place <= first ? 0 : place - first < BLOCK ? (int)(place - first) : BLOCK;
}

/* mixed (rows, width) += score (rows, BLOCK) times `keys` values that stand `apart` numbers from each other. */
INLINE void mix_block(const int type, const void *values, size_t apart, int keys, int rows, const float *score,
                      int width, float *panel, float *mixed) {
    for (int i = 0; i < width; i += BROAD) {
        const int some = width - i < BROAD ? width - i : BROAD;
        const float *lines = (const float *)values + i;
        size_t each = apart;
        if (type == BFLOAT16) {
            const uint16_t *half = (const uint16_t *)values + i;
            for (int j = 0; j < keys; j++, half += apart)
                for (int k = 0; k < BROAD; k += LANES)
                    store(panel + j * BROAD + k, some > k ? load_bf16_some(half + k, some - k) : all(0));
            lines = panel;
            each = BROAD;
        }
        tiles(rows, score, BLOCK, lines, each, keys, 0, some, mixed + i, width);
    }
}

/* `count` tokens from row `token` on, whose queries of all heads are at q, read one kv head -> out, as q. */
static void attend_together(const struct heads *h, const float *q, int token, int count, int head, float *own,
                            float *out) {
    const int shared = h->heads / h->kv_heads, rows = count * shared, width = h->width;
    const size_t apart = (size_t)h->kv_heads * width, line = (size_t)h->heads * width;
    float *query = own, *mixed = query + (size_t)rows * width, *score = mixed + (size_t)rows * width;
    float *most = score + (size_t)rows * BLOCK, *sum = most + rows, *panel = sum + rows;
    for (int t = 0; t < count; t++) {
        const float *mine = q + t * line + (size_t)head * shared * width;
        for (int i = 0; i < shared * width; i++) query[t * shared * width + i] = mine[i] * h->scale;
    }
    memset(mixed, 0, 4u * (size_t)rows * width);
    for (int r = 0; r < rows; r++) most[r] = -INFINITY, sum[r] = 0;
    const int64_t place = h->places[token], end = place + count;
    int64_t from = h->window && place + 1 > h->window ? place + 1 - h->window : 0;
    for (int64_t first = from / BLOCK * BLOCK; first < end; first += BLOCK) {
        const int keys = before(end, first);
        const void *key = held(h, h->keys, token, first, head), *value = held(h, h->values, token, first, head);
        for (int n = 0; n < keys; n += BROAD) {
            if (h->type == BFLOAT16) lay_out(BFLOAT16, key, apart, (size_t)n, keys - n, 0, width, panel);
            else lay_out(FLOAT32, key, apart, (size_t)n, keys - n, 0, width, panel);
            tiles(rows, query, width, panel, BROAD, width, 1, BROAD, score + n, BLOCK);
        }
        for (int r = 0; r < rows; r++) {
            const int64_t last = place + r / shared + 1;
            const int low = h->window ? before(last - h->window, first) : 0;
            const float factor = soften_block(h, score + (size_t)r * BLOCK, low, before(last, first), most + r, sum + r);
            float *y = mixed + (size_t)r * width;
            for (int i = 0; factor != 1 && i < width; i++) y[i] *= factor;
        }
        if (h->type == BFLOAT16) mix_block(BFLOAT16, value, apart, keys, rows, score, width, panel, mixed);
        else mix_block(FLOAT32, value, apart, keys, rows, score, width, panel, mixed);
    }
    for (int r = 0; r < rows; r++) {
        float *y = out + r / shared * line + ((size_t)head * shared + r % shared) * width;
        for (int i = 0; i < width; i++) y[i] = mixed[(size_t)r * width + i] / sum[r];
    }
}

#endif
