/* Attention of new tokens over the cache, in pieces of keys that depend on a token's own place alone. */
#ifndef SENSORIUM_ATTEND_H
#define SENSORIUM_ATTEND_H

#include "vector.h"

#define PIECES 16 /* of one token at most */

/* What one layer's attention reads and writes. Keys and values are (slots, capacity, kv heads, width). */
struct heads {
    int heads, kv_heads, width, window; /* window 0: none */
    float scale, cap;                   /* of the scores; cap 0: none */
    float *keys, *values;
    int64_t capacity;
    const int64_t *slots, *places; /* of each new token */
};

INLINE float *held(const struct heads *h, float *store, int token, int64_t place, int head) {
    return store + ((h->slots[token] * h->capacity + place) * h->kv_heads + head) * h->width;
}

struct span {
    int64_t first, end; /* keys that the token sees */
    int64_t piece;      /* keys of a piece */
    int pieces;
};

/* The keys of a token: long texts have at most PIECES pieces, so that joining them costs little. */
INLINE struct span seen(const struct heads *h, int token) {
    struct span s = {0, h->places[token] + 1, 64, 0};
    if (h->window && s.end > h->window) s.first = s.end - h->window;
    while (s.piece * PIECES < s.end - s.first) s.piece *= 2;
    s.pieces = (int)((s.end - s.first + s.piece - 1) / s.piece);
    return s;
}

/* Floats of a piece of one head: the highest score, the sum of the shares, the shares times the values. */
INLINE size_t piece_floats(const struct heads *h) { return (size_t)h->width + 2; }

INLINE float dot(const float *a, const float *b, int width) {
    vf sum = all(0);
    for (int i = 0; i < width; i += LANES) sum = add_product(sum, load_some(a + i, width - i), load_some(b + i, width - i));
    return total(sum);
}

/* score[j] of `count` keys that stand `apart` floats from each other. */
INLINE void scores(const float *q, const float *keys, size_t apart, int count, int width, float *score) {
    int j = 0;
    for (; j + 4 <= count; j += 4) {
        vf sum[4] = {all(0), all(0), all(0), all(0)};
        for (int i = 0; i < width; i += LANES) {
            vf part = load_some(q + i, width - i);
            for (int k = 0; k < 4; k++) sum[k] = add_product(sum[k], part, load_some(keys + (j + k) * apart + i, width - i));
        }
        for (int k = 0; k < 4; k++) score[j + k] = total(sum[k]);
    }
    for (; j < count; j++) score[j] = dot(q, keys + j * apart, width);
}

/* Scores become shares e^(score - highest); what stands behind `count` up to a whole vector must be there. */
INLINE void soften(const struct heads *h, float *score, int count, float *most, float *sum) {
    vf best = all(-INFINITY), added = all(0);
    for (int j = 0; j < count; j += LANES) {
        vf s = load(score + j) * h->scale;
        if (h->cap > 0) s = h->cap * hyperbolic_tangent(s / h->cap);
        store(score + j, s);
    }
    for (int j = count; j % LANES; j++) score[j] = -INFINITY;
    for (int j = 0; j < count; j += LANES) best = larger(best, load(score + j));
    *most = highest(best);
    for (int j = 0; j < count; j += LANES) {
        vf s = load(score + j), share = exponential(s - *most);
        share = choose(s == -INFINITY, all(0), share);
        store(score + j, share);
        added += share;
    }
    *sum = total(added);
}

/* out (width) = sum over j of share[j] * values[j] */
INLINE void mix(const float *share, const float *values, size_t apart, int count, int width, float *out) {
    int i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        vf sum[4] = {all(0), all(0), all(0), all(0)};
        for (int j = 0; j < count; j++)
            for (int k = 0; k < 4; k++) sum[k] = add_product(sum[k], all(share[j]), load(values + j * apart + i + k * LANES));
        for (int k = 0; k < 4; k++) store(out + i + k * LANES, sum[k]);
    }
    for (; i < width; i += LANES) {
        vf sum = all(0);
        for (int j = 0; j < count; j++) sum = add_product(sum, all(share[j]), load_some(values + j * apart + i, width - i));
        store_some(out + i, sum, width - i);
    }
}

/* One piece of the keys of one kv head, for all heads that share it. `score` has room for a piece and a vector. */
INLINE void attend_piece(const struct heads *h, const float *q, int token, int head, int64_t first, int count,
                         float *score, float *partial, size_t apart_heads) {
    const int shared = h->heads / h->kv_heads;
    const size_t apart = (size_t)h->kv_heads * h->width;
    const float *keys = held(h, h->keys, token, first, head), *values = held(h, h->values, token, first, head);
    for (int one = 0; one < shared; one++) {
        float *out = partial + one * apart_heads;
        scores(q + ((size_t)head * shared + one) * h->width, keys, apart, count, h->width, score);
        soften(h, score, count, out, out + 1);
        mix(score, values, apart, count, h->width, out + 2);
    }
}

/* The pieces of one head of one token -> out (width). */
INLINE void join_pieces(const float *partial, int pieces, int width, float *out) {
    const size_t apart = (size_t)width + 2;
    float most = partial[0], sum = 0, weight[PIECES + LANES] = {0};
    for (int p = 1; p < pieces; p++) most = partial[p * apart] > most ? partial[p * apart] : most;
    for (int p = 0; p < pieces; p++) weight[p] = partial[p * apart] - most;
    for (int p = 0; p < pieces; p += LANES) store(weight + p, exponential(load(weight + p)));
    for (int p = 0; p < pieces; p++) sum += weight[p] * partial[p * apart + 1];
    for (int i = 0; i < width; i += LANES) {
        vf mixed = all(0);
        for (int p = 0; p < pieces; p++) mixed += weight[p] * load_some(partial + p * apart + 2 + i, width - i);
        store_some(out + i, mixed / sum, width - i);
    }
}

/* x (width): its first `turned` numbers are rotated in place; cos and signed sin (turned). */
INLINE void rotate(float *x, int turned, const float *cosine, const float *sine) {
    const int half = turned / 2;
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] + b * sine[i];
        x[i + half] = b * cosine[i + half] + a * sine[i + half];
    }
}

#endif
