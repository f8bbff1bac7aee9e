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

/* A vector at i of a head; `whole`: a head is a number of vectors, so none of them is cut. */
INLINE vf load_head(const float *p, int i, int width, const int whole) {
    return whole ? load(p + i) : load_some(p + i, width - i);
}

/* score[h * room + j] of `some` neighbouring queries and `count` keys that stand `apart` floats from each other. */
INLINE void scores(const float *q, const int some, const float *keys, size_t apart, int count, int width,
                   const int whole, float *score, size_t room) {
    int j = 0;
    for (; j + 4 <= count; j += 4) {
        vf sum[2][4];
        UNROLL for (int h = 0; h < some; h++) UNROLL for (int k = 0; k < 4; k++) sum[h][k] = all(0);
        for (int i = 0; i < width; i += LANES) {
            vf key[4];
            UNROLL for (int k = 0; k < 4; k++) key[k] = load_head(keys + (j + k) * apart, i, width, whole);
            UNROLL for (int h = 0; h < some; h++) {
                vf part = load_head(q + h * width, i, width, whole);
                UNROLL for (int k = 0; k < 4; k++) sum[h][k] = add_product(sum[h][k], part, key[k]);
            }
        }
        UNROLL for (int h = 0; h < some; h++) {
            quad four = totals(sum[h][0], sum[h][1], sum[h][2], sum[h][3]);
            memcpy(score + h * room + j, &four, sizeof four);
        }
    }
    for (; j < count; j++)
        for (int h = 0; h < some; h++) {
            vf sum = all(0);
            for (int i = 0; i < width; i += LANES)
                sum = add_product(sum, load_head(q + h * width, i, width, whole),
                                  load_head(keys + j * apart, i, width, whole));
            score[h * room + j] = total(sum);
        }
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

/* `vectors` of out[h * beside] = sum over j of share[h * room + j] * values[j], for `some` neighbouring heads. */
INLINE void mix_some(const float *share, size_t room, const int some, const float *values, size_t apart, int count,
                     const int vectors, int left, float *out, size_t beside) {
    vf sum[2][4];
    UNROLL for (int h = 0; h < some; h++) UNROLL for (int k = 0; k < vectors; k++) sum[h][k] = all(0);
    for (int j = 0; j < count; j++) {
        const float *value = values + j * apart;
        UNROLL for (int k = 0; k < vectors; k++) {
            vf part = vectors > 1 ? load(value + k * LANES) : load_some(value, left);
            UNROLL for (int h = 0; h < some; h++) sum[h][k] = add_product(sum[h][k], all(share[h * room + j]), part);
        }
    }
    UNROLL for (int h = 0; h < some; h++) UNROLL for (int k = 0; k < vectors; k++)
        store_some(out + h * beside + k * LANES, sum[h][k], vectors > 1 ? LANES : left);
}
INLINE void mix(const float *share, size_t room, const int some, const float *values, size_t apart, int count,
                int width, float *out, size_t beside) {
    int i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES)
        mix_some(share, room, some, values + i, apart, count, 4, 0, out + i, beside);
    for (; i < width; i += LANES)
        mix_some(share, room, some, values + i, apart, count, 1, width - i, out + i, beside);
}

/* One piece of the keys of one kv head, for `some` of the heads that share it. `score` has room for `some` pieces, each
and a vector. */
INLINE void attend_some(const struct heads *h, const float *q, const int some, const float *keys, const float *values,
                        int count, const int whole, float *score, size_t room, float *partial, size_t beside) {
    const size_t apart = (size_t)h->kv_heads * h->width;
    scores(q, some, keys, apart, count, h->width, whole, score, room);
    for (int one = 0; one < some; one++)
        soften(h, score + one * room, count, partial + one * beside, partial + one * beside + 1);
    mix(score, room, some, values, apart, count, h->width, partial + 2, beside);
}
static void attend_piece(const struct heads *h, const float *q, int token, int head, int64_t first, int count,
                         float *score, size_t room, float *partial, size_t beside) {
    const int shared = h->heads / h->kv_heads, whole = h->width % LANES == 0;
    const float *keys = held(h, h->keys, token, first, head), *values = held(h, h->values, token, first, head);
    q += (size_t)head * shared * h->width;
    for (int one = 0; one < shared;) {
        const int some = one + 2 <= shared ? 2 : 1;
        const float *mine = q + (size_t)one * h->width;
        float *to = partial + one * beside;
        if (some == 2 && whole) attend_some(h, mine, 2, keys, values, count, 1, score, room, to, beside);
        else if (whole) attend_some(h, mine, 1, keys, values, count, 1, score, room, to, beside);
        else if (some == 2) attend_some(h, mine, 2, keys, values, count, 0, score, room, to, beside);
        else attend_some(h, mine, 1, keys, values, count, 0, score, room, to, beside);
        one += some;
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
