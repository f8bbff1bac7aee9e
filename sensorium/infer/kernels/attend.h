/* Attention of new tokens over the cache, in pieces of keys that depend on a token's own place alone. */
#ifndef SENSORIUM_ATTEND_H
#define SENSORIUM_ATTEND_H

#include "vector.h"

#define PIECES 16 /* of one token at most */
#define PIECE 32  /* keys, at least */
#define BESIDE 4  /* keys whose scores are summed at once */
#define MIXED 8   /* values that are added at once */

/* What one layer's attention reads and writes. Keys and values are (slots, capacity, kv heads, width), FLOAT32 or
BFLOAT16. */
struct heads {
    int heads, kv_heads, width, window, type; /* window 0: none */
    float scale, cap;                         /* of the scores; cap 0: none */
    void *keys, *values;
    int64_t capacity;
    const int64_t *slots, *places; /* of each new token */
};

/* The bytes of one of them. */
INLINE size_t held_size(const struct heads *h) { return h->type == BFLOAT16 ? 2 : 4; }
INLINE void *held(const struct heads *h, void *store, int token, int64_t place, int head) {
    const int64_t at = ((h->slots[token] * h->capacity + place) * h->kv_heads + head) * h->width;
    return (char *)store + at * (int64_t)held_size(h);
}

struct span {
    int64_t first, end; /* keys that the token sees */
    int64_t piece;      /* keys of a piece */
    int pieces;
};

/* The keys of a token: long texts have at most PIECES pieces, so that joining them costs little. */
INLINE struct span seen(const struct heads *h, int token) {
    struct span s = {0, h->places[token] + 1, PIECE, 0};
    if (h->window && s.end > h->window) s.first = s.end - h->window;
    while (s.piece * PIECES < s.end - s.first) s.piece *= 2;
    s.pieces = (int)((s.end - s.first + s.piece - 1) / s.piece);
    return s;
}

/* Floats of a piece of one head: the highest score, the sum of the shares, the shares times the values. */
INLINE size_t piece_floats(const struct heads *h) { return (size_t)h->width + 2; }

/* Keys and values that are needed next. They are asked for side by side, in the order in which they lie, and few at a
time, between other work: the CPU can wait for about 20 lines at once, and stands still for more. */
struct next {
    const char *keys, *values;
    size_t lines, step; /* that are left, of either; that are asked for at a time */
};
INLINE void fetch(struct next *next) {
    const size_t lines = next->step < next->lines ? next->step : next->lines;
    for (size_t line = 0; line < lines; line++, next->keys += 64, next->values += 64) {
        __builtin_prefetch(next->keys);
        __builtin_prefetch(next->values);
    }
    next->lines -= lines;
}

/* How heads are read: the type of keys and values, and whether a head is `whole` vectors, so that none of them is cut. */
struct way {
    int type, whole;
};
/* A vector at i of a head that begins at `first`. */
INLINE vf load_head(const void *p, const int type, size_t first, int i, int width, const int whole) {
    if (type == BFLOAT16) {
        const uint16_t *half = (const uint16_t *)p + first + i;
        return whole ? load_bf16(half) : load_bf16_some(half, width - i);
    }
    const float *x = (const float *)p + first + i;
    return whole ? load(x) : load_some(x, width - i);
}

/* score[h * room + j] of `some` neighbouring queries and `count` <= BESIDE keys, the first at `at`, that stand `apart`
numbers from each other. */
INLINE void score_some(const float *q, const int some, const void *keys, size_t at, size_t apart, int count, int width,
                       const struct way way, float *score, size_t room, struct next *next) {
    if (count < BESIDE) {
        for (int j = 0; j < count; j++)
            for (int h = 0; h < some; h++) {
                vf sum = all(0);
                for (int i = 0; i < width; i += LANES)
                    sum = add_product(sum, load_head(q, FLOAT32, (size_t)h * width, i, width, way.whole),
                                      load_head(keys, way.type, at + j * apart, i, width, way.whole));
                score[h * room + j] = total(sum);
            }
        return;
    }
    vf sum[3][BESIDE];
    UNROLL for (int h = 0; h < some; h++) UNROLL for (int j = 0; j < BESIDE; j++) sum[h][j] = all(0);
    for (int i = 0; i < width; i += LANES) {
        fetch(next);
        vf key[BESIDE];
        UNROLL for (int j = 0; j < BESIDE; j++) key[j] = load_head(keys, way.type, at + j * apart, i, width, way.whole);
        UNROLL for (int h = 0; h < some; h++) {
            vf part = load_head(q, FLOAT32, (size_t)h * width, i, width, way.whole);
            UNROLL for (int j = 0; j < BESIDE; j++) sum[h][j] = add_product(sum[h][j], part, key[j]);
        }
    }
    UNROLL for (int h = 0; h < some; h++) {
        quad four = totals(sum[h][0], sum[h][1], sum[h][2], sum[h][3]);
        memcpy(score + h * room, &four, sizeof four);
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
        const vf share = exponential(load(score + j) - *most);
        store(score + j, share);
        added += share;
    }
    *sum = total(added);
}

/* out[h * beside] += sum over j < count of share[h * room + j] * values[j], for `some` neighbouring heads; the first
value stands at `at`. */
INLINE void mix_some(const float *share, size_t room, const int some, const void *values, size_t at, size_t apart,
                     int count, int width, const int type, float *out, size_t beside, struct next *next) {
    int i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        vf sum[3][4];
        UNROLL for (int h = 0; h < some; h++)
            UNROLL for (int k = 0; k < 4; k++) sum[h][k] = load(out + h * beside + i + k * LANES);
        for (int j = 0; j < count; j++) {
            fetch(next);
            UNROLL for (int k = 0; k < 4; k++) {
                vf part = load_head(values, type, at + j * apart, i + k * LANES, width, 1);
                UNROLL for (int h = 0; h < some; h++)
                    sum[h][k] = add_product(sum[h][k], all(share[h * room + j]), part);
            }
        }
        UNROLL for (int h = 0; h < some; h++)
            UNROLL for (int k = 0; k < 4; k++) store(out + h * beside + i + k * LANES, sum[h][k]);
    }
    for (; i < width; i += LANES)
        for (int h = 0; h < some; h++) {
            vf sum = load_some(out + h * beside + i, width - i);
            for (int j = 0; j < count; j++)
                sum = add_product(sum, all(share[h * room + j]), load_head(values, type, at + j * apart, i, width, 0));
            store_some(out + h * beside + i, sum, width - i);
        }
}

/* Of `left` heads that share keys, how many are computed together: as registers allow, and none alone if it can be. */
INLINE int together(int left) { return left == 3 ? 3 : left > 1 ? 2 : 1; }

/* One piece of the keys, for all heads: keys and values are read in the order in which they lie. q (heads, width);
score (heads, room); the partial results of heads stand `beside` floats apart. */
INLINE void attend_whole(const struct heads *h, const float *q, const void *keys, const void *values, int count,
                         const struct way way, float *score, size_t room, float *partial, size_t beside,
                         struct next *next) {
    const int shared = h->heads / h->kv_heads, width = h->width;
    const size_t apart = (size_t)h->kv_heads * width;
    for (int j = 0; j < count; j += BESIDE) {
        const int some = count - j < BESIDE ? count - j : BESIDE;
        for (int head = 0, taken; head < h->heads; head += taken) {
            const float *mine = q + (size_t)head * width;
            const size_t at = j * apart + (size_t)(head / shared) * width;
            float *to = score + head * room + j;
            taken = together(shared - head % shared);
            if (taken == 3) score_some(mine, 3, keys, at, apart, some, width, way, to, room, next);
            else if (taken == 2) score_some(mine, 2, keys, at, apart, some, width, way, to, room, next);
            else score_some(mine, 1, keys, at, apart, some, width, way, to, room, next);
        }
    }
    for (int head = 0; head < h->heads; head++) {
        float *out = partial + head * beside;
        soften(h, score + head * room, count, out, out + 1);
        memset(out + 2, 0, sizeof(float) * (size_t)width);
    }
    for (int j = 0; j < count; j += MIXED) {
        const int some = count - j < MIXED ? count - j : MIXED;
        for (int head = 0, taken; head < h->heads; head += taken) {
            const size_t at = j * apart + (size_t)(head / shared) * width;
            const float *share = score + head * room + j;
            float *out = partial + head * beside + 2;
            taken = together(shared - head % shared);
            if (taken == 3) mix_some(share, room, 3, values, at, apart, some, width, way.type, out, beside, next);
            else if (taken == 2) mix_some(share, room, 2, values, at, apart, some, width, way.type, out, beside, next);
            else mix_some(share, room, 1, values, at, apart, some, width, way.type, out, beside, next);
        }
    }
}
static void attend_piece(const struct heads *h, const float *q, int token, int64_t first, int count, float *score,
                         size_t room, float *partial, size_t beside, struct next *next) {
    const void *keys = held(h, h->keys, token, first, 0), *values = held(h, h->values, token, first, 0);
    const int whole = h->width % LANES == 0;
#define ATTEND(TYPE, WHOLE)                                                                                           \
    if (h->type == (TYPE) && whole == (WHOLE))                                                                        \
        attend_whole(h, q, keys, values, count, (struct way){TYPE, WHOLE}, score, room, partial, beside, next);
    ATTEND(FLOAT32, 1)
    else ATTEND(FLOAT32, 0)
    else ATTEND(BFLOAT16, 1)
    else ATTEND(BFLOAT16, 0)
#undef ATTEND
}

/* One piece of one token, counted over all tokens. */
struct unit {
    int token, piece, count;
    int64_t first, piece_keys;
};
INLINE int64_t units_of(const struct heads *h, int tokens) {
    int64_t units = 0;
    for (int token = 0; token < tokens; token++) units += seen(h, token).pieces;
    return units;
}
/* Unit `number` of `tokens` tokens, or the first of count 0 behind the last. */
INLINE struct unit unit_at(const struct heads *h, int tokens, int64_t number) {
    for (int token = 0; token < tokens; token++) {
        const struct span s = seen(h, token);
        if (number < s.pieces) {
            struct unit u = {token, (int)number, 0, s.first + number * s.piece, s.piece};
            u.count = (int)(s.end - u.first < s.piece ? s.end - u.first : s.piece);
            return u;
        }
        number -= s.pieces;
    }
    return (struct unit){0, 0, 0, 0, 0};
}

/* What `u` reads, to be asked for while a piece of `count` keys is computed. */
INLINE struct next next_of(const struct heads *h, const struct unit *u, int count) {
    if (!u->count) return (struct next){NULL, NULL, 0, 0};
    const size_t lines = ((size_t)u->count * h->kv_heads * h->width * held_size(h) + 63) / 64;
    const int shared = h->heads / h->kv_heads, turns = h->kv_heads * ((shared + 1) / (shared == 3 ? 3 : 2));
    const int steps = turns * (h->width / LANES * (count / BESIDE) + h->width / LANES / 4 * count) + 1;
    return (struct next){held(h, h->keys, u->token, u->first, 0), held(h, h->values, u->token, u->first, 0), lines, lines / (size_t)steps + 1};
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
