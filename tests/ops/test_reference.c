/* test_reference.c: every op of ops.def against a plain reference in double, on the CPU or another device (reference.h).
 *
 * The case of an op is the test of the same name; the last test reads ops.def and fails where an op has none. A
 * backward op is compared with the derivative of the forward's reference, by central differences. CTest runs this once
 * per instruction set, and per dtype of 16 bits on a GPU or its model. */
#include "ops/reference.h"

#include "ops/reference_attention.h"
#include "ops/reference_loss.h"
#include "ops/reference_matrix.h"
#include "ops/reference_movement.h"
#include "ops/reference_scratch.h"

/* ---- arguments that no kernel may be given ---------------------------------------------------------------------------- */
TEST(wrong_arguments)
{
    mat *x = mat_random(4, 6, LR_F32, false), *y = mat_new(4, 5, LR_F32, false), *half = mat_random(4, 6, HALF, false);
    CHECK_INT(lr_op_mul(y->t, x->t, x->t), LR_ESHAPE);
    CHECK_HAS(lr_last_error(), "mul: a ('mat') has shape [4, 6], expected [N,W] with W = 5 as in y");
    CHECK_INT(lr_op_mul(x->t, x->t, half->t), LR_EDTYPE);
    CHECK_HAS(lr_last_error(), ", expected f32");
    CHECK_INT(lr_op_mul(x->t, NULL, x->t), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "a is missing");
    mat *view = mat_random(4, 6, LR_F32, true);
    CHECK_INT(lr_op_mul(x->t, view->t, x->t), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "must be contiguous");
    lr_tensor_free(x->t);
    CHECK_INT(lr_op_mul(y->t, y->t, x->t), LR_EFREED);
    CHECK_HAS(lr_last_error(), "b ('mat') was freed");
    release();
}

TEST(packed_where_it_belongs)
{
    const mat *w = mat_random(6, 6, LR_F32, false), *x = mat_random(6, 6, LR_F32, false);
    mat *y = mat_new(6, 6, LR_F32, false);
    lr_tensor *forward = packed(w, 1, LR_F32);
    CHECK_INT(lr_op_linear_backward(y->t, x->t, forward, 0.0), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "packed for linear, expected packed for linear_backward");
    CHECK_INT(lr_op_linear(y->t, x->t, w->t, NULL, NULL), LR_EINVAL);
    CHECK_INT(lr_op_mul(y->t, x->t, forward), LR_EINVAL);
    release();
}

/* The CPU stores f16 and does not compute in it: every op that would returns an error that says so. */
TEST(f16_is_refused_by_the_cpu)
{
    CPU_ONLY;
    static const int lengths[] = {4};
    lr_tensor *x = mat_random(4, 8, LR_F16, false)->t, *y = mat_new(4, 8, LR_F16, false)->t;
    lr_tensor *wide = mat_random(4, 16, LR_F16, false)->t, *pooled = mat_new(1, 8, LR_F32, false)->t;
    lr_tensor *w = mat_random(0, 8, LR_F32, false)->t, *statistic = mat_random(0, 4, LR_F32, false)->t;
    lr_tensor *ids = mat_ids(4, LR_I32, 4)->t, *keys = mat_ids(4, LR_I64, 4)->t, *cu = mat_cu(lengths, 1)->t;
    lr_tensor *lse = mat_random(4, 1, LR_F32, false)->t, *square = mat_random(4, 4, LR_F16, false)->t;
    const int answers[] = {
        lr_op_embedding(y, x, ids, 0.0),
        lr_op_add(y, x, x, 1.0, 1.0),
        lr_op_mul(y, x, x),
        lr_op_gather_rows(y, x, ids),
        lr_op_scatter_rows(y, x, ids),
        lr_op_matmul_nt(square, x, x, 1.0, 0.0),
        lr_op_matmul_nn(y, square, x, 1.0, 0.0),
        lr_op_matmul_tn(y, square, x, 1.0, 0.0),
        lr_op_rms_norm(y, NULL, statistic, x, NULL, w, 1e-5),
        lr_op_rms_norm_backward(y, x, x, w, statistic, NULL),
        lr_op_layer_norm(y, NULL, statistic, statistic, x, NULL, w, w, 1e-5),
        lr_op_layer_norm_backward(y, x, x, w, statistic, statistic, NULL),
        lr_op_rope(y, x, lse, ids, 1.0),
        lr_op_attention(y, lse, x, x, x, cu, 8, 4, 1.0, 0),
        lr_op_attention_backward(y, y, y, x, x, x, x, x, lse, cu, 8, 4, 1.0, 0),
        lr_op_gelu(y, x, 0),
        lr_op_gelu_backward(y, x, x, 0),
        lr_op_swiglu(y, wide),
        lr_op_swiglu_backward(wide, x, wide),
        lr_op_dropout(y, x, keys, 0.5, 1, 1, 1, 0.0),
        lr_op_pool(pooled, x, cu, 1),
        lr_op_pool_backward(y, pooled, cu, 1),
    };
    for (size_t i = 0; i < LR_COUNT_OF(answers); i++)
        CHECK_INT(answers[i], LR_EUNSUPPORTED);
    CHECK_HAS(lr_last_error(), "fp16 compute needs a GPU");
    release();
}

/* Enough threads to share out the smallest cases, more threads than rows, and one: the same bits from elementwise ops.
 */
TEST(any_number_of_threads)
{
    CPU_ONLY;
    static const int counts[] = {1, 2, 3, 8};
    static const int lengths[] = {70, 3, 50};
    const int before = lr_threads();
    const mat *x = mat_random(123, 64, LR_F32, false), *cu = mat_cu(lengths, 3);
    mat *first = mat_new(123, 64, LR_F32, false), *o = mat_new(123, 64, LR_F32, false),
        *lse = mat_new(123, 2, LR_F32, false);
    for (int i = 0; i < 4; i++) {
        OK(lr_threads_set(counts[i]));
        OK(lr_op_attention(o->t, lse->t, x->t, x->t, x->t, cu->t, 32, 70, 0.2, 1));
        if (i == 0)
            memcpy(first->t->data, o->t->data, 123 * 64 * sizeof(float));
        CHECK_INT(memcmp(first->t->data, o->t->data, 123 * 64 * sizeof(float)), 0);
    }
    OK(lr_threads_set(before));
    release();
}

TEST(every_op_has_a_case)
{
    char name[64];
    bool scratch;
    int ops = 0;
    FILE *f = ops_open();
    const char *missing = NULL;
    while (missing == NULL && ops_next(f, name, &scratch)) {
        const lr_test *t = lr_tests;
        while (t != NULL && strcmp(t->name, name) != 0)
            t = t->next;
        missing = t == NULL ? name : NULL;
        ops++;
    }
    fclose(f);
    if (missing != NULL)
        LR_TEST_FAIL("op %s of ops.def has no case here", missing);
    CHECK(ops >= 35);
}

int main(int argc, char **argv)
{
    enum { SKIPPED = 77 };
    if (!lr_device_available(device)) {
        printf("skipped: device %s: %s\n", lr_device_name(device), lr_device_missing(device));
        return SKIPPED;
    }
    return lr_test_main(argc, argv);
}
