/* bench_kernels.c: the speed of each CPU kernel next to what this machine can do, measured in the same run.
 *
 *   bench_kernels [part of an op's name]
 *
 * Shapes are those of a small BERT (hidden 384, 12 heads of 32, intermediate 1536) on some 4000 packed tokens of 12 to
 * 512 each. Ops that move data are shown in GB/s against a copy, products and attention in GFLOP/s against a large
 * product of the same dtype; both figures are the best of several runs, because machines are noisy and noise only
 * slows. The last lines put a transformer layer together, forward and gradient of activations, and give its share of
 * the GEMM ceiling. */
#include "core/op.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    HIDDEN = 384,
    HEADS = 12,
    HEAD_DIM = 32,
    INNER = 1536,
    QKV = 3 * HIDDEN,
    SEQUENCES = 16,
    RANK = 16,
    REPEATS = 15
};

static const char *only = "";
static int dtype;
static int64_t tokens, longest, score_pairs; /* score_pairs: sum of squared lengths */
static double copy_rate, gemm_rate[2];
static lr_tensor *cu, *ids;

static void need(int status)
{
    if (status == LR_OK)
        return;
    fprintf(stderr, "bench_kernels: %s\n", lr_last_error());
    exit(1);
}

/* A tensor of small values that differ. */
static lr_tensor *matrix(int64_t rows, int64_t columns, int of)
{
    lr_tensor *t = NULL, *f = NULL;
    const int64_t shape[] = {rows, columns};
    need(lr_tensor_new(&t, of, 2, shape, LR_CPU, "bench"));
    need(lr_tensor_new(&f, LR_F32, 2, shape, LR_CPU, "bench"));
    need(lr_tensor_uniform(f, 1, (uint32_t)columns, -0.5, 0.5));
    need(lr_op_cast(t, f));
    lr_tensor_destroy(f);
    return t;
}

static lr_tensor *vector(int64_t n, int of)
{
    lr_tensor *t = NULL;
    need(lr_tensor_new(&t, of, 1, &n, LR_CPU, "bench"));
    need(lr_tensor_fill(t, 0.01));
    return t;
}

static lr_tensor *columns(const lr_tensor *t, int64_t first, int64_t n)
{
    lr_tensor *view = NULL;
    const int64_t shape[] = {t->shape[0], n};
    need(lr_tensor_view(&view, t, first, 2, shape, t->ld));
    return view;
}

static lr_tensor *weight(int64_t n, int64_t k, int direction)
{
    lr_tensor *w = matrix(n, k, LR_F32), *packed = NULL;
    need(lr_tensor_pack(&packed, w, direction, dtype));
    lr_tensor_destroy(w);
    return packed;
}

/* With one thread the clock is this process's own time, so that a busy machine disturbs less (taskset -c 0
 * bench_kernels). */
static double now(void)
{
    struct timespec t;
    if (lr_threads() > 1)
        return lr_time();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Best time of `call`. */
#define BEST(seconds, call)                                                                                            \
    do {                                                                                                               \
        seconds = 1e9;                                                                                                 \
        for (int repeat_ = 0; repeat_ < REPEATS; repeat_++) {                                                          \
            const double start_ = now();                                                                               \
            need(call);                                                                                                \
            const double taken_ = now() - start_;                                                                      \
            seconds = taken_ < seconds ? taken_ : seconds;                                                             \
        }                                                                                                              \
    } while (0)

#define MOVES(name, bytes, call)                                                                                       \
    do {                                                                                                               \
        if (strstr(name, only) != NULL) {                                                                              \
            double t_;                                                                                                 \
            BEST(t_, call);                                                                                            \
            printf("%-28s %-4s %9.3f ms %8.1f GB/s    %5.1f%% of copy\n", name, lr_dtype_name(dtype), 1e3 * t_,        \
                   (double)(bytes) / t_ * 1e-9, 100.0 * (double)(bytes) / t_ / copy_rate);                             \
        }                                                                                                              \
    } while (0)

#define COMPUTES(name, flops, call)                                                                                    \
    do {                                                                                                               \
        if (strstr(name, only) != NULL) {                                                                              \
            double t_;                                                                                                 \
            BEST(t_, call);                                                                                            \
            printf("%-28s %-4s %9.3f ms %8.1f GFLOP/s %5.1f%% of GEMM\n", name, lr_dtype_name(dtype), 1e3 * t_,        \
                   (double)(flops) / t_ * 1e-9, 100.0 * (double)(flops) / t_ / gemm_rate[dtype]);                      \
        }                                                                                                              \
    } while (0)

static void measure_machine(void)
{
    enum { SIDE = 2048, COPIED = 8192 }; /* COPIED * SIDE f32: 64 MiB, beyond any cache here */
    double t;
    lr_tensor *from = matrix(COPIED, SIDE, LR_F32), *to = matrix(COPIED, SIDE, LR_F32);
    BEST(t, lr_op_cast(to, from));
    copy_rate = 2.0 * sizeof(float) * COPIED * SIDE / t;
    lr_tensor_destroy(from);
    lr_tensor_destroy(to);
    for (dtype = LR_F32; dtype <= LR_BF16; dtype++) {
        lr_tensor *x = matrix(SIDE, SIDE, dtype), *y = matrix(SIDE, SIDE, dtype), *w = weight(SIDE, SIDE, 1);
        BEST(t, lr_op_linear(y, x, w, NULL, NULL));
        gemm_rate[dtype] = 2.0 * SIDE * SIDE * SIDE / t;
        lr_tensor_destroy(x);
        lr_tensor_destroy(y);
        lr_tensor_destroy(w);
    }
    char device[256];
    need(lr_device_describe(LR_CPU, device, sizeof device));
    printf("%s\ncopy %.1f GB/s (read + written), GEMM %.0f GFLOP/s f32, %.0f bf16\n%lld tokens in %d sequences of 12 "
           "to %lld\n",
           device, copy_rate * 1e-9, gemm_rate[LR_F32] * 1e-9, gemm_rate[LR_BF16] * 1e-9, (long long)tokens, SEQUENCES,
           (long long)longest);
}

/* Lengths spread evenly from 12 to 512. */
static void make_batch(void)
{
    int32_t start[SEQUENCES + 1] = {0};
    for (int i = 0; i < SEQUENCES; i++) {
        const int32_t n = 12 + 500 * ((i * 7) % SEQUENCES) / (SEQUENCES - 1);
        start[i + 1] = start[i] + n;
        longest = n > longest ? n : longest;
        score_pairs += (int64_t)n * n;
    }
    tokens = start[SEQUENCES];
    const int64_t n = SEQUENCES + 1;
    need(lr_tensor_new(&cu, LR_I32, 1, &n, LR_CPU, "cu"));
    need(lr_tensor_write(cu, 0, n, start));
    need(lr_tensor_new(&ids, LR_I32, 1, &tokens, LR_CPU, "ids"));
    for (int64_t i = 0; i < tokens; i++) {
        const int32_t id = (int32_t)(i * 7919 % 512);
        need(lr_tensor_write(ids, i, 1, &id));
    }
}

/* ---- single ops ------------------------------------------------------------------------------------------------------- */
static void bench_movement(void)
{
    const double size = (double)lr_dtype_size(dtype), n = size * (double)(tokens * INNER);
    lr_tensor *x = matrix(tokens, INNER, dtype), *y = matrix(tokens, INNER, dtype), *table = matrix(512, INNER, dtype);
    lr_tensor *z = matrix(tokens, INNER, dtype), *f = matrix(tokens, INNER, dtype == LR_F32 ? LR_BF16 : LR_F32);
    lr_tensor *gu = matrix(tokens, 2 * INNER, dtype), *dgu = matrix(tokens, 2 * INNER, dtype),
              *keys = vector(tokens, LR_I64);
    lr_tensor *rope_table = matrix(512, 64, LR_F32);
    MOVES("embedding", 2.0 * n, lr_op_embedding(y, table, ids, 0.0));
    MOVES("embedding beta", 3.0 * n, lr_op_embedding(y, table, ids, 1.0));
    MOVES("cast", n * (1.0 + (dtype == LR_F32 ? 0.5 : 2.0)), lr_op_cast(f, x));
    MOVES("add", 3.0 * n, lr_op_add(y, x, z, 1.0, 0.5));
    MOVES("mul", 3.0 * n, lr_op_mul(y, x, z));
    MOVES("gather_rows", 2.0 * n, lr_op_gather_rows(y, table, ids));
    MOVES("rope", 2.0 * n, lr_op_rope(y, x, rope_table, ids, 1.0));
    MOVES("gelu erf", 2.0 * n, lr_op_gelu(y, x, 0));
    MOVES("gelu tanh", 2.0 * n, lr_op_gelu(y, x, 1));
    MOVES("gelu_backward erf", 3.0 * n, lr_op_gelu_backward(y, z, x, 0));
    MOVES("gelu_backward tanh", 3.0 * n, lr_op_gelu_backward(y, z, x, 1));
    MOVES("swiglu", 3.0 * n, lr_op_swiglu(y, gu));
    MOVES("swiglu_backward", 5.0 * n, lr_op_swiglu_backward(dgu, y, gu));
    MOVES("dropout", 2.0 * n, lr_op_dropout(y, x, keys, 0.1, 1, 1, 1, 0.0));
    lr_tensor *all[] = {x, y, z, f, table, gu, dgu, keys, rope_table};
    for (size_t i = 0; i < LR_COUNT_OF(all); i++)
        lr_tensor_destroy(all[i]);
}

static void bench_norms(void)
{
    const double n = (double)lr_dtype_size(dtype) * (double)(tokens * HIDDEN);
    lr_tensor *x = matrix(tokens, HIDDEN, dtype), *r = matrix(tokens, HIDDEN, dtype),
              *y = matrix(tokens, HIDDEN, dtype);
    lr_tensor *s = matrix(tokens, HIDDEN, dtype), *w = vector(HIDDEN, LR_F32), *mean = vector(tokens, LR_F32);
    lr_tensor *rstd = vector(tokens, LR_F32), *pooled = matrix(SEQUENCES, HIDDEN, LR_F32);
    MOVES("layer_norm", 2.0 * n, lr_op_layer_norm(y, NULL, mean, rstd, x, NULL, w, w, 1e-5));
    MOVES("layer_norm residual", 4.0 * n, lr_op_layer_norm(y, s, mean, rstd, x, r, w, w, 1e-5));
    MOVES("layer_norm_backward", 4.0 * n, lr_op_layer_norm_backward(y, x, s, w, mean, rstd, r));
    MOVES("rms_norm residual", 4.0 * n, lr_op_rms_norm(y, s, rstd, x, r, w, 1e-5));
    MOVES("rms_norm_backward", 4.0 * n, lr_op_rms_norm_backward(y, x, s, w, rstd, r));
    MOVES("pool mean", n, lr_op_pool(pooled, x, cu, 1));
    MOVES("pool_backward mean", n, lr_op_pool_backward(x, pooled, cu, 1));
    lr_tensor *all[] = {x, r, y, s, w, mean, rstd, pooled};
    for (size_t i = 0; i < LR_COUNT_OF(all); i++)
        lr_tensor_destroy(all[i]);
}

static void bench_products(void)
{
    static const int64_t shapes[][2] = {{QKV, HIDDEN}, {HIDDEN, HIDDEN}, {INNER, HIDDEN}, {HIDDEN, INNER}};
    char name[64];
    lr_tensor *bias = vector(INNER, LR_F32);
    for (size_t i = 0; i < LR_COUNT_OF(shapes); i++) {
        const int64_t n = shapes[i][0], k = shapes[i][1];
        const double flops = 2.0 * (double)(tokens * n * k);
        lr_tensor *x = matrix(tokens, k, dtype), *y = matrix(tokens, n, dtype), *b = NULL;
        lr_tensor *forward = weight(n, k, 1), *backward = weight(n, k, 2), *wide = matrix(tokens, 2 * n, dtype);
        lr_tensor *view = columns(wide, 16, n), *r = matrix(tokens, n, dtype);
        need(lr_tensor_view(&b, bias, 0, 1, &n, 0));
        snprintf(name, sizeof name, "linear %lldx%lld", (long long)n, (long long)k);
        COMPUTES(name, flops, lr_op_linear(y, x, forward, b, NULL));
        snprintf(name, sizeof name, "linear residual");
        COMPUTES(name, flops, lr_op_linear(y, x, forward, b, r));
        snprintf(name, sizeof name, "linear strided");
        COMPUTES(name, flops, lr_op_linear(view, x, forward, b, NULL));
        snprintf(name, sizeof name, "linear_backward %lldx%lld", (long long)n, (long long)k);
        COMPUTES(name, flops, lr_op_linear_backward(x, y, backward, 0.0));
        snprintf(name, sizeof name, "linear_backward beta");
        COMPUTES(name, flops, lr_op_linear_backward(x, y, backward, 1.0));
        lr_tensor *all[] = {x, y, r, b, forward, backward, view, wide};
        for (size_t j = 0; j < LR_COUNT_OF(all); j++)
            lr_tensor_destroy(all[j]);
    }
    lr_tensor_destroy(bias);
}

/* LoRA's products on q, k and v stacked: h = x a^T, y += h b^T, dh = dy b, dx = dh a, da = dh^T x, db = dy^T h. What
 * they multiply has the dtype of the activations, the gradients of the adapters are f32. */
static void bench_lora(void)
{
    enum { STACKED = 3 * RANK };
    const double flops = 2.0 * (double)(tokens * HIDDEN * RANK);
    lr_tensor *x = matrix(tokens, HIDDEN, dtype), *wide = matrix(tokens, QKV, dtype),
              *y = columns(wide, HIDDEN, HIDDEN);
    lr_tensor *h = matrix(tokens, STACKED, dtype), *part = columns(h, RANK, RANK);
    lr_tensor *a = matrix(STACKED, HIDDEN, dtype), *b = matrix(HIDDEN, RANK, dtype);
    lr_tensor *da = matrix(STACKED, HIDDEN, LR_F32), *db = matrix(HIDDEN, RANK, LR_F32);
    COMPUTES("matmul_nt x a^T", 3.0 * flops, lr_op_matmul_nt(h, x, a, 1.0, 0.0));
    COMPUTES("matmul_nt y += h b^T", flops, lr_op_matmul_nt(y, part, b, 0.01, 1.0));
    COMPUTES("matmul_nn dy b", flops, lr_op_matmul_nn(part, y, b, 1.0, 0.0));
    COMPUTES("matmul_nn dh a", 3.0 * flops, lr_op_matmul_nn(x, h, a, 1.0, 0.0));
    COMPUTES("matmul_tn dh^T x", 3.0 * flops, lr_op_matmul_tn(da, h, x, 1.0, 1.0));
    COMPUTES("matmul_tn dy^T h", flops, lr_op_matmul_tn(db, y, part, 1.0, 1.0));
    lr_tensor *all[] = {x, y, wide, h, part, a, b, da, db};
    for (size_t i = 0; i < LR_COUNT_OF(all); i++)
        lr_tensor_destroy(all[i]);
}

static void bench_attention(void)
{
    const double flops =
        4.0 * (double)(score_pairs * HIDDEN); /* q k^T and p v; backward has four such products and one more */
    lr_tensor *qkv = matrix(tokens, QKV, dtype), *d = matrix(tokens, QKV, dtype), *o = matrix(tokens, HIDDEN, dtype);
    lr_tensor *q = columns(qkv, 0, HIDDEN), *k = columns(qkv, HIDDEN, HIDDEN), *v = columns(qkv, 2 * HIDDEN, HIDDEN);
    lr_tensor *dq = columns(d, 0, HIDDEN), *dk = columns(d, HIDDEN, HIDDEN), *dv = columns(d, 2 * HIDDEN, HIDDEN);
    lr_tensor *d_o = matrix(tokens, HIDDEN, dtype), *lse = matrix(tokens, HEADS, LR_F32);
    for (int causal = 0; causal < 2; causal++) {
        const double part = causal ? 0.5 : 1.0;
        COMPUTES(causal ? "attention causal" : "attention", part * flops,
                 lr_op_attention(o, lse, q, k, v, cu, HEAD_DIM, longest, 0.18, causal));
        COMPUTES(causal ? "attention_backward causal" : "attention_backward", 2.5 * part * flops,
                 lr_op_attention_backward(dq, dk, dv, d_o, q, k, v, o, lse, cu, HEAD_DIM, longest, 0.18, causal));
    }
    lr_tensor *all[] = {q, k, v, dq, dk, dv, qkv, d, o, d_o, lse};
    for (size_t i = 0; i < LR_COUNT_OF(all); i++)
        lr_tensor_destroy(all[i]);
}

static void bench_optimiser(void)
{
    enum { N = 4 << 20 };
    lr_tensor *p = vector(N, LR_F32), *m = vector(N, LR_F32), *v = vector(N, LR_F32), *g = vector(N, LR_F32);
    lr_tensor *factor = vector(1, LR_F32), *norm = vector(1, LR_F32);
    MOVES("clip_factor", 4.0 * N, lr_op_clip_factor(factor, norm, g, NULL, 1.0));
    MOVES("adamw", 28.0 * N, lr_op_adamw(p, m, v, g, factor, 1e-4, 0.9, 0.999, 1e-8, 0.01, 3));
    lr_tensor *all[] = {p, m, v, g, factor, norm};
    for (size_t i = 0; i < LR_COUNT_OF(all); i++)
        lr_tensor_destroy(all[i]);
}

/* ---- a whole layer ---------------------------------------------------------------------------------------------------- */
typedef struct layer {
    lr_tensor *x, *y, *s, *qkv, *q, *k, *v, *o, *lse, *inner, *active, *gradient, *mean, *rstd, *norm, *bias;
    lr_tensor *w_qkv[2], *w_o[2], *w_up[2], *w_down[2];
} layer;

static int forward(const layer *l)
{
    need(lr_op_linear(l->qkv, l->x, l->w_qkv[0], l->bias, NULL));
    need(lr_op_attention(l->o, l->lse, l->q, l->k, l->v, cu, HEAD_DIM, longest, 0.18, 0));
    need(lr_op_linear(l->y, l->o, l->w_o[0], NULL, NULL));
    need(lr_op_layer_norm(l->y, l->s, l->mean, l->rstd, l->y, l->x, l->norm, l->norm, 1e-5));
    need(lr_op_linear(l->inner, l->y, l->w_up[0], NULL, NULL));
    need(lr_op_gelu(l->active, l->inner, 0));
    need(lr_op_linear(l->o, l->active, l->w_down[0], NULL, NULL));
    return lr_op_layer_norm(l->y, l->s, l->mean, l->rstd, l->o, l->y, l->norm, l->norm, 1e-5);
}

static int backward(const layer *l)
{
    need(lr_op_layer_norm_backward(l->y, l->y, l->s, l->norm, l->mean, l->rstd, NULL));
    need(lr_op_linear_backward(l->active, l->y, l->w_down[1], 0.0));
    need(lr_op_gelu_backward(l->active, l->active, l->inner, 0));
    need(lr_op_linear_backward(l->y, l->active, l->w_up[1], 1.0));
    need(lr_op_layer_norm_backward(l->y, l->y, l->s, l->norm, l->mean, l->rstd, NULL));
    need(lr_op_linear_backward(l->o, l->y, l->w_o[1], 0.0));
    need(lr_op_attention_backward(l->q, l->k, l->v, l->o, l->q, l->k, l->v, l->o, l->lse, cu, HEAD_DIM, longest, 0.18,
                                  0));
    return lr_op_linear_backward(l->y, l->qkv, l->w_qkv[1], 1.0);
}

static void bench_layer(void)
{
    layer l = {.x = matrix(tokens, HIDDEN, dtype),
               .y = matrix(tokens, HIDDEN, dtype),
               .s = matrix(tokens, HIDDEN, dtype),
               .qkv = matrix(tokens, QKV, dtype),
               .o = matrix(tokens, HIDDEN, dtype),
               .lse = matrix(tokens, HEADS, LR_F32),
               .inner = matrix(tokens, INNER, dtype),
               .active = matrix(tokens, INNER, dtype),
               .mean = vector(tokens, LR_F32),
               .rstd = vector(tokens, LR_F32),
               .norm = vector(HIDDEN, LR_F32),
               .bias = vector(QKV, LR_F32)};
    for (int i = 0; i < 2; i++) {
        l.w_qkv[i] = weight(QKV, HIDDEN, i + 1);
        l.w_o[i] = weight(HIDDEN, HIDDEN, i + 1);
        l.w_up[i] = weight(INNER, HIDDEN, i + 1);
        l.w_down[i] = weight(HIDDEN, INNER, i + 1);
    }
    l.q = columns(l.qkv, 0, HIDDEN);
    l.k = columns(l.qkv, HIDDEN, HIDDEN);
    l.v = columns(l.qkv, 2 * HIDDEN, HIDDEN);
    const double products = 2.0 * (double)tokens * (HIDDEN * QKV + HIDDEN * HIDDEN + 2.0 * HIDDEN * INNER);
    const double scores = 4.0 * (double)(score_pairs * HIDDEN);
    COMPUTES("layer forward", products + scores, forward(&l));
    COMPUTES("layer backward", products + 2.0 * scores, backward(&l));
    for (lr_tensor **t = (lr_tensor **)&l; t < (lr_tensor **)(&l + 1); t++)
        lr_tensor_destroy(*t);
}

int main(int argc, char **argv)
{
    only = argc > 1 ? argv[1] : "";
    setvbuf(stdout, NULL, _IOLBF, 0); /* a slow machine shows what it has so far */
    make_batch();
    measure_machine();
    for (dtype = LR_F32; dtype <= LR_BF16; dtype++) {
        bench_movement();
        bench_norms();
        bench_products();
        bench_lora();
        bench_attention();
        if (dtype == LR_F32)
            bench_optimiser();
        bench_layer();
    }
    lr_tensor_destroy(cu);
    lr_tensor_destroy(ids);
    return 0;
}
