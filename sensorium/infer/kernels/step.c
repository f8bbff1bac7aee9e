/* A decode step of a Transformer as a list of operations, interpreted by all threads inside one parallel region.

Registers hold (rows, width) float32 each, for the `rows` new tokens. Every operation ends with a barrier. What all
threads need and is cheap (a norm before a product, rounding its input) each of them does for itself. */
#define _GNU_SOURCE
#include "attend_many.h"
#include "call.h"
#include "linear.h"
#include "quant.h"
#include "rows.h"

#include <sched.h>
#include <stdlib.h>

/* Without omp.h, which some compilers do not ship beside the runtime that torch brings. */
extern int omp_get_thread_num(void);
extern int omp_get_num_threads(void);

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

struct barrier {
    int32_t waiting __attribute__((aligned(64)));
    int32_t phase __attribute__((aligned(64)));
    int32_t taken __attribute__((aligned(64))); /* pieces of the work since all met */
};

/* Spinning costs a tenth of a sleeping barrier; where more threads than cores want to run, others come first. */
static void meet(struct barrier *b, int threads) {
    int32_t phase = __atomic_load_n(&b->phase, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&b->waiting, 1, __ATOMIC_ACQ_REL) == threads) {
        __atomic_store_n(&b->taken, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&b->waiting, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&b->phase, phase + 1, __ATOMIC_RELEASE);
        return;
    }
    for (int spins = 0; __atomic_load_n(&b->phase, __ATOMIC_ACQUIRE) == phase; spins++) {
        if (spins < 10000) RELAX();
        else sched_yield();
    }
}

/* Large pieces are taken one by one, as not every core is as free as the others. */
INLINE int take(struct barrier *b) { return __atomic_fetch_add(&b->taken, 1, __ATOMIC_RELAXED); }

/* The share of a thread in `count` things, in units of `unit`. */
INLINE void share_of(int64_t count, int64_t unit, int thread, int threads, int64_t *first, int64_t *end) {
    int64_t units = (count + unit - 1) / unit;
    *first = units * thread / threads * unit;
    *end = units * (thread + 1) / threads * unit;
    if (*first > count) *first = count;
    if (*end > count) *end = count;
}

/* Bytes of an input row as weights of `type` read it. */
INLINE size_t input_bytes(int type, int k) { return type >= EIGHT_BITS ? quant_input_bytes(k) : packed_bytes(type, k); }

static void product(const struct call *c, const struct part *part, int k, const char *x, size_t stride, int n0,
                    int n1) {
    float *y = reg(c, part->to);
    const struct quant codes = {part->weight, part->scales, part->outputs, k};
    switch (part->type) {
    case FLOAT32: float32_rows(part->weight, k, x, stride, c->rows, n0, n1, y, part->outputs); break;
    case BFLOAT16: bfloat16_rows(part->weight, k, x, stride, c->rows, n0, n1, y, part->outputs); break;
    case EIGHT_BITS: q8_rows(&codes, x, stride, c->rows, n0, n1, y, part->outputs); break;
    default: q4_rows(&codes, x, stride, c->rows, n0, n1, y, part->outputs); break;
    }
}

/* The rows of the input, normalised and in the form that weights of `type` are multiplied by. */
static void enter(const struct call *c, const struct op *op, int type, char *own, size_t stride) {
    float *plain = (float *)(own + stride * c->rows);
    for (int row = 0; row < c->rows; row++) {
        const float *x = reg(c, op->from) + (size_t)row * op->width;
        if (op->factor != 1.0f) {
            for (int i = 0; i < op->width; i++) plain[i] = x[i] * op->factor;
            x = plain;
        }
        if (op->norm.kind) {
            norm_row(&op->norm, x, plain, op->width, 0);
            x = plain;
        }
        if (type >= EIGHT_BITS) quant_input(x, op->width, own + stride * row);
        else pack(type, x, op->width, own + stride * row);
    }
}

/* Where the outputs of a part are cut, near `at`: between blocks, or panels of codes. */
INLINE int cut(int64_t at, const struct part *part) {
    const int unit = part->type >= EIGHT_BITS ? QUANT_PANEL : ROWS;
    at = at < 0 ? 0 : (at + unit - 1) / unit * unit;
    return (int)(at > part->outputs ? part->outputs : at);
}

static void linear(const struct call *c, const struct op *op, int thread, int threads, char *own) {
    int64_t all_outputs = 0, before = 0, first, end;
    const int together = op->out == OUT_GATED; /* both parts are split alike, as their outputs meet */
    for (int p = 0; p < (together ? 1 : op->parts); p++) all_outputs += op->part[p].outputs;
    share_of(all_outputs, ROWS, thread, threads, &first, &end);
    int packed = -1;
    size_t stride = 0;
    for (int p = 0; p < op->parts; p++) {
        const struct part *part = &op->part[p];
        const int n0 = cut(first - before, part), n1 = cut(end - before, part);
        if (!together) before += part->outputs;
        if (n0 >= n1) continue;
        if (packed != part->type) {
            packed = part->type;
            stride = input_bytes(packed, op->width);
            enter(c, op, packed, own, stride);
        }
        product(c, part, op->width, own, stride, n0, n1);
        finish(c, op, p, 0, c->rows, n0, n1, reg(c, part->to) + n0, (size_t)part->outputs);
    }
}

/* Whether all parts are of one type, so that one form of their input serves them. */
INLINE int alike(const struct op *op) {
    for (int p = 0; p < op->parts; p++)
        if (op->part[p].type != op->part[0].type) return 0;
    return 1;
}

/* Outputs n.. of a part, a panel's worth. */
struct job {
    int part, n;
};
INLINE int job_outputs(const struct op *op) { return op->part[0].type >= EIGHT_BITS ? 2 * QUANT_PANEL : BROAD; }
/* The panels that a thread computes: where outputs of both parts meet, one of either; part -1: none is left. */
INLINE struct job job_behind(const struct op *op, struct job job, struct barrier *barrier) {
    if (op->out == OUT_GATED && job.part == 0) return (struct job){1, job.n};
    int panel = take(barrier);
    const int each = job_outputs(op);
    for (int p = 0; p < (op->out == OUT_GATED ? 1 : op->parts); p++) {
        const int panels = (op->part[p].outputs + each - 1) / each;
        if (panel < panels) return (struct job){p, panel * each};
        panel -= panels;
    }
    return (struct job){-1, 0};
}

/* The same for many rows, whose inputs all threads make together, where steps keep what is the first thread's own.
Weights of codes are met as in steps, which keeps many rows busy too; others in panels. */
static void linear_many(const struct call *c, const struct op *op, int thread, int threads, char *own,
                        struct barrier *barrier) {
    const int type = op->part[0].type, codes = type >= EIGHT_BITS, width = op->width, pairs = paired(type, width);
    const size_t stride = codes ? quant_input_bytes(width) : 4 * (size_t)width;
    int64_t first, end;
    share_of(c->rows, 1, thread, threads, &first, &end);
    for (int64_t row = first; row < end; row++) {
        const float *x = reg(c, op->from) + row * width;
        char *input = c->own + stride * row;
        float *y = (float *)(codes ? own + stride * c->rows : input);
        for (int i = 0; i < width; i += LANES) store_some(y + i, load_some(x + i, width - i) * op->factor, width - i);
        if (op->norm.kind) norm_row(&op->norm, y, y, width, 0);
        if (codes) quant_input(y, width, input);
        for (int i = 0; type == BFLOAT16 && i < width; i += LANES) {
            const vf v = load_some(y + i, width - i);
            if (pairs) store_bf16_some((uint16_t *)y + i, v, width - i); /* never beyond what was read */
            else store_some(y + i, round_bf16(v), width - i);
        }
    }
    meet(barrier, threads);
    for (struct job job = job_behind(op, (struct job){-1, 0}, barrier), then; job.part >= 0; job = then) {
        const struct part *part = &op->part[job.part];
        struct coming coming = {NULL, 0, 0, 0, 0, 0};
        then = job_behind(op, job, barrier);
        if (codes) {
            const int until = job.n + job_outputs(op), n1 = until < part->outputs ? until : part->outputs;
            product(c, part, width, c->own, stride, job.n, n1);
            finish(c, op, job.part, 0, c->rows, job.n, n1, reg(c, part->to) + job.n, (size_t)part->outputs);
            continue;
        }
        if (then.part >= 0) {
            const struct part *follows = &op->part[then.part];
            coming = coming_at(pairs ? FLOAT32 : type, follows->weight, width >> pairs, then.n, follows->outputs, 0,
                               c->rows);
        }
        many_panel(c, op, job.part, job.n, (const float *)c->own, coming);
    }
}

/* Of each row: to = norm(from), or to += scale * norm(from). */
static void norms(const struct call *c, const struct op *op, int thread, int threads, char *own) {
    int64_t first, end;
    share_of(c->rows, 1, thread, threads, &first, &end);
    for (int64_t row = first; row < end; row++) {
        const float *x = reg(c, op->from) + row * op->width;
        float *y = reg(c, op->to) + row * op->width, *made = op->out == OUT_ADD ? (float *)own : y;
        norm_row(&op->norm, x, made, op->width, 0);
        if (op->out != OUT_ADD) continue;
        for (int i = 0; i < op->width; i += LANES) {
            vf v = load_some(made + i, op->width - i);
            if (op->scale) v *= load_typed(op->scale, op->scale_type, i, op->width - i);
            store_some(y + i, load_some(y + i, op->width - i) + v, op->width - i);
        }
    }
}

INLINE struct heads heads_of(const struct call *c, const struct op *op) {
    struct heads h = {op->heads, op->kv_heads, op->head_width, op->window, c->kept_type, op->score_scale, op->cap,
                      c->keys[op->layer], c->values[op->layer], c->capacity, c->slots, c->places};
    return h;
}

/* Queries are normalised and rotated in place; keys too, and then kept, as values are. */
static void prepare_heads(const struct call *c, const struct op *op, int thread, int threads) {
    const struct heads h = heads_of(c, op);
    const int each = h.heads + 2 * h.kv_heads, width = h.width;
    int64_t first, end;
    share_of((int64_t)c->rows * each, 1, thread, threads, &first, &end);
    for (int64_t one = first; one < end; one++) {
        int row = (int)(one / each), head = (int)(one % each);
        float *x;
        const int value = head >= h.heads + h.kv_heads, key = !value && head >= h.heads;
        if (value) head -= h.heads + h.kv_heads, x = reg(c, op->third) + ((size_t)row * h.kv_heads + head) * width;
        else if (key) head -= h.heads, x = reg(c, op->to) + ((size_t)row * h.kv_heads + head) * width;
        else x = reg(c, op->from) + ((size_t)row * h.heads + head) * width;
        if (!value) {
            const struct norm *norm = key ? &op->norm2 : &op->norm;
            if (norm->kind) norm_row(norm, x, x, width, head);
            if (op->turned) {
                const struct table *t = &c->tables[op->table];
                size_t at = (size_t)t->row[row] * op->turned;
                rotate(x, op->turned, t->cosine + at, t->sine + at);
            }
        }
        if (!key && !value) continue;
        void *to = held(&h, value ? h.values : h.keys, row, h.places[row], head);
        for (int i = 0; i < width; i += LANES) {
            const vf v = load_some(x + i, width - i);
            if (h.type == BFLOAT16) store_bf16_some((uint16_t *)to + i, v, width - i);
            else store_some((float *)to + i, v, width - i);
        }
    }
}

/* Queries in `from` -> what they read in `to`; pieces of keys are shared out, then joined. */
static void attention(const struct call *c, const struct op *op, int thread, int threads, char *own,
                      struct barrier *barrier) {
    const struct heads h = heads_of(c, op);
    const size_t apart = piece_floats(&h), row_floats = apart * PIECES * h.heads;
    int64_t first, end;
    share_of(units_of(&h, c->rows), 1, thread, threads, &first, &end);
    struct unit unit = unit_at(&h, c->rows, first);
    for (int64_t one = first; one < end; one++) {
        const struct unit follows = one + 1 < end ? unit_at(&h, c->rows, one + 1) : (struct unit){0, 0, 0, 0, 0};
        struct next next = next_of(&h, &follows, unit.count);
        attend_piece(&h, reg(c, op->from) + (size_t)unit.token * h.heads * h.width, unit.token, unit.first, unit.count,
                     (float *)own, (size_t)unit.piece_keys + LANES,
                     c->partial + unit.token * row_floats + unit.piece * apart, apart * PIECES, &next);
        unit = follows;
    }
    meet(barrier, threads);
    share_of((int64_t)c->rows * h.heads, 1, thread, threads, &first, &end);
    for (int64_t one = first; one < end; one++) {
        int row = (int)(one / h.heads), head = (int)(one % h.heads);
        join_pieces(c->partial + row * row_floats + (size_t)head * PIECES * apart, seen(&h, row).pieces, h.width,
                    reg(c, op->to) + one * h.width);
    }
}

/* The same for prompts: tokens that follow each other read together. */
static void attention_many(const struct call *c, const struct op *op, char *own, struct barrier *barrier) {
    const struct heads h = heads_of(c, op);
    const size_t line = (size_t)h.heads * h.width;
    int unit = 0, mine = take(barrier);
    for (int row = 0, count; row < c->rows; row += count) {
        count = reading(&h, c->rows, row);
        for (int head = 0; head < h.kv_heads; head++) {
            if (unit++ != mine) continue;
            attend_together(&h, reg(c, op->from) + row * line, row, count, head, (float *)own,
                            reg(c, op->to) + row * line);
            mine = take(barrier);
        }
    }
}

static void soft_cap(const struct call *c, const struct op *op, int thread, int threads) {
    int64_t first, end, count = (int64_t)c->rows * op->width;
    float *x = reg(c, op->from);
    share_of(count, LANES, thread, threads, &first, &end);
    for (int64_t i = first; i < end; i += LANES) {
        int some = end - i < LANES ? (int)(end - i) : LANES;
        store_some(x + i, op->cap * hyperbolic_tangent(load_some(x + i, some) / op->cap), some);
    }
}

/* Rows of either type into a register, or out of one. */
static void carry(const struct call *c, int inwards, int thread, int threads) {
    int64_t first, end, count = (int64_t)c->rows * (inwards ? c->in_width : c->out_width);
    float *x = reg(c, inwards ? c->from : c->to);
    share_of(count, LANES, thread, threads, &first, &end);
    for (int64_t i = first; i < end; i += LANES) {
        int some = end - i < LANES ? (int)(end - i) : LANES;
        if (inwards) store_some(x + i, load_typed(c->in, c->in_type, (size_t)i, some), some);
        else if (c->out_type == BFLOAT16) store_bf16_some((uint16_t *)c->out + i, load_some(x + i, some), some);
        else store_some((float *)c->out + i, load_some(x + i, some), some);
    }
}

/* From here on only the rows that are kept: of the states, of where they stand, and of the queries of `op`. */
static void keep_rows(struct call *c, const struct op *op, int thread, int threads, struct barrier *barrier) {
    const size_t states = (size_t)c->in_width, queries = op ? (size_t)op->heads * op->head_width : 0;
    for (int i = 0; thread == 0 && i < c->kept_rows; i++) {
        const int row = c->kept[i];
        if (row == i) continue;
        memcpy(reg(c, c->from) + i * states, reg(c, c->from) + row * states, 4 * states);
        if (op) memcpy(reg(c, op->from) + i * queries, reg(c, op->from) + row * queries, 4 * queries);
        c->slots[i] = c->slots[row];
        c->places[i] = c->places[row];
    }
    c->rows = c->kept_rows;
    meet(barrier, threads);
}

static void run_thread(const struct call *call, struct barrier *barrier) {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    struct call mine = *call, *c = &mine; /* whose rows may become fewer */
    char *own = c->own + c->own_bytes * thread;
    carry(c, 1, thread, threads);
    meet(barrier, threads);
    if (c->kept && c->last < 0) keep_rows(c, NULL, thread, threads, barrier);
    for (int i = 0; i < c->count && c->rows; i++) {
        const struct op *op = c->ops + i;
        switch (op->kind) {
        case OP_NORM: norms(c, op, thread, threads, own); break;
        case OP_LINEAR:
            if (c->many && alike(op)) linear_many(c, op, thread, threads, own, barrier);
            else linear(c, op, thread, threads, own);
            break;
        case OP_HEADS: prepare_heads(c, op, thread, threads); break;
        case OP_ATTEND:
            if (c->many) attention_many(c, op, own, barrier);
            else attention(c, op, thread, threads, own, barrier);
            break;
        case OP_CAP: soft_cap(c, op, thread, threads); break;
        }
        meet(barrier, threads);
        if (c->kept && i == c->last) keep_rows(c, op, thread, threads, barrier);
    }
    if (c->to >= 0) carry(c, 0, thread, threads);
}

#define EXPORT __attribute__((visibility("default")))

EXPORT void run(const struct call *c) {
    struct barrier barrier = {0, 0, 0};
#pragma omp parallel num_threads(c->threads)
    run_thread(c, &barrier);
}

/* So that a mistake in the mirror of these is found at once. */
EXPORT int64_t size_of(int which) { return which == 0 ? sizeof(struct op) : sizeof(struct call); }
EXPORT int64_t own_bytes(int rows, int widest, int heads, int64_t keys) {
    size_t each = packed_bytes(BFLOAT16, widest), coded = quant_input_bytes(widest);
    int64_t bytes = (int64_t)(each > coded ? each : coded) * rows + 4 * ((int64_t)widest + 4 * LANES);
    int64_t piece = keys / PIECES * 2 > PIECE ? keys / PIECES * 2 : PIECE; /* at most */
    int64_t scores = 4 * heads * (piece + LANES);
    return ((bytes > scores ? bytes : scores) + 127) / 64 * 64;
}
EXPORT int64_t partial_floats(int heads, int width) { return (int64_t)PIECES * heads * (width + 2); }
/* What prompts need more. */
EXPORT int64_t many_bytes(int heads, int kv_heads, int width) {
    return ((int64_t)together_floats(heads, kv_heads, width) * 4 + 127) / 64 * 64;
}
EXPORT int lanes(void) { return LANES; }
