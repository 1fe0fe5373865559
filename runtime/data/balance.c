/* balance.c: divides work among the ranks so that all have about the same amount: the heaviest item first, each to the rank that
 * has the least so far ("longest processing time first"; Graham, "Bounds on multiprocessing timing anomalies", 1969).
 *
 * The result depends on the weights alone: ties go to the lower index and the lower rank. So every rank computes it by itself,
 * and all get the same. */
#include "data/balance.h"

/* Is item a given out before item b? */
static bool before(const int64_t *weights, int64_t a, int64_t b)
{
    return weights[a] != weights[b] ? weights[a] > weights[b] : a < b;
}

/* Let the item at `at` of a binary heap of n items sink below those that are given out before it. */
static void sink(const int64_t *weights, int64_t *heap, int64_t n, int64_t at)
{
    const int64_t item = heap[at];
    for (int64_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && before(weights, heap[child + 1], heap[child]))
            child++;
        if (before(weights, item, heap[child]))
            break;
        heap[at] = heap[child];
    }
    heap[at] = item;
}

void lr_balance_into(int64_t n, const int64_t *weights, int world, int32_t *owner, int64_t *loads, int64_t *heap)
{
    for (int64_t i = 0; i < n; i++)
        heap[i] = i;
    for (int64_t i = n / 2 - 1; i >= 0; i--)
        sink(weights, heap, n, i);
    for (int rank = 0; rank < world; rank++)
        loads[rank] = 0;
    for (int64_t left = n; left > 0; left--) {
        const int64_t item = heap[0];
        heap[0] = heap[left - 1];
        if (left > 1)
            sink(weights, heap, left - 1, 0);
        int least = 0;
        for (int rank = 1; rank < world; rank++)
            if (loads[rank] < loads[least])
                least = rank;
        owner[item] = least;
        loads[least] += weights[item];
    }
}

int lr_balance(int64_t n, const int64_t *weights, int world, int32_t *owner)
{
    if (n < 0 || world < 1)
        return lr_fail(LR_EINVAL, "%lld items cannot be divided among %d ranks", (long long)n, world);
    int64_t total = 0;
    for (int64_t i = 0; i < n; i++)
        if (weights[i] < 0 || __builtin_add_overflow(total, weights[i], &total))
            return lr_fail(LR_EINVAL, "item %lld weighs %lld, expected 0 or more and a sum below 2^63", (long long)i,
                           (long long)weights[i]);
    int64_t *scratch = lr_alloc(((size_t)n + (size_t)world) * sizeof *scratch);
    if (scratch == NULL)
        return LR_ENOMEM;
    lr_balance_into(n, weights, world, owner, scratch + n, scratch);
    lr_free(scratch);
    return LR_OK;
}
