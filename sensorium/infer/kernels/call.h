/* What a call says: operations over registers. Mirrored in layout.py. */
#ifndef SENSORIUM_CALL_H
#define SENSORIUM_CALL_H

#include <stdint.h>

enum { EIGHT_BITS = 2, FOUR_BITS = 3 }; /* types of weights beside FLOAT32 and BFLOAT16 */
enum { OP_NORM, OP_LINEAR, OP_HEADS, OP_ATTEND, OP_CAP };
enum { NORM_NONE, NORM_RMS, NORM_LAYER };
enum { ACT_NONE, ACT_SILU, ACT_GELU, ACT_GELU_TANH, ACT_QUICK_GELU, ACT_RELU, ACT_RELU2 };
enum { OUT_STORE, OUT_GATED, OUT_ADD };

struct norm {
    const void *weight, *bias; /* NULL: none */
    int32_t kind, weight_type, bias_type, centred;
    int32_t by_head; /* each head has weights of its own */
    float eps;
};
struct part {
    const void *weight, *scales, *bias;
    int32_t type, bias_type, outputs;
    int32_t to; /* register */
};
struct op {
    int32_t kind, width; /* width of what is read */
    int32_t from, to;    /* registers */
    struct norm norm, norm2;
    /* linear */
    int32_t parts, out, activation, scale_type;
    float factor;      /* the input is multiplied by it, before a norm */
    const void *scale; /* of what is added to `to`, by channel; NULL: 1 */
    struct part part[3];
    /* heads (registers from, to, third: queries, keys, values) and attention */
    int32_t heads, kv_heads, head_width, window, turned, table, layer, third;
    float score_scale, cap;
};
struct table {
    const float *cosine, *sine; /* (places, turned), the sine signed */
    const int64_t *row;         /* (rows): which place each token takes */
};
struct call {
    const struct op *ops;
    int32_t count, rows, threads, in_type, out_type, from, to, in_width, out_width, many;
    const void *in;
    void *out;
    float *registers; /* register r begins at r * room */
    char *own;        /* own_bytes for each thread */
    int64_t own_bytes, capacity;
    float *partial; /* pieces of attention */
    int64_t *slots, *places;
    void *const *keys, *const *values; /* of each layer */
    struct table tables[2];
    const int32_t *kept; /* rows that go on behind operation `last`, in rising order; NULL: all do */
    int32_t kept_rows, last, room; /* rows that registers have room for */
    int32_t kept_type;             /* of keys and values */
};

#endif
