/* test_balance.c: dividing work among ranks: the result is that of the rule taken literally, including ties, and it is even. */
#include "data/balance.h"
#include "lr_test.h"

enum { MOST = 300, RANKS = 9 };

/* Numbers below `limit`, the same in every run. */
static void draw(int64_t *weights, int64_t n, int64_t limit, uint32_t purpose)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t word[4];
        lr_random(11, purpose, 0, (uint64_t)i, word);
        weights[i] = word[0] % limit;
    }
}

/* The rule taken literally: n times, the heaviest remaining item goes to the rank that has the least. */
static void deal_slowly(int64_t n, const int64_t *weights, int world, int32_t *owner, int64_t *loads)
{
    memset(loads, 0, (size_t)world * sizeof *loads);
    for (int64_t i = 0; i < n; i++)
        owner[i] = -1;
    for (int64_t k = 0; k < n; k++) {
        int64_t item = -1;
        for (int64_t i = 0; i < n; i++)
            if (owner[i] < 0 && (item < 0 || weights[i] > weights[item]))
                item = i;
        int least = 0;
        for (int rank = 1; rank < world; rank++)
            if (loads[rank] < loads[least])
                least = rank;
        owner[item] = least;
        loads[least] += weights[item];
    }
}

TEST(a_small_case_by_hand)
{
    static const int64_t weights[] = {3, 9, 3, 5, 9, 1};
    int32_t owner[6];
    CHECK_INT(lr_balance(6, weights, 2, owner), LR_OK);
    CHECK_INT(owner[1], 0); /* 9; the ranks have 9 and 0 */
    CHECK_INT(owner[4], 1); /* 9; 9 and 9 */
    CHECK_INT(owner[3], 0); /* 5; 14 and 9 */
    CHECK_INT(owner[0], 1); /* 3; 14 and 12 */
    CHECK_INT(owner[2], 1); /* 3; 14 and 15 */
    CHECK_INT(owner[5], 0); /* 1; 15 and 15 */
}

TEST(the_rule_taken_literally)
{
    static int64_t weights[MOST], heap[MOST], loads[RANKS], slow_loads[RANKS];
    static int32_t owner[MOST], slow[MOST];
    uint32_t purpose = 0;
    for (int64_t limit = 1; limit <= 1000; limit *= 10) /* with 1 all weights are equal: everything is a tie */
        for (int world = 1; world <= RANKS; world++)
            for (int64_t n = 0; n <= MOST; n = n < 12 ? n + 1 : n * 2) {
                draw(weights, n, limit, purpose++);
                deal_slowly(n, weights, world, slow, slow_loads);
                lr_balance_into(n, weights, world, owner, loads, heap);
                for (int64_t i = 0; i < n; i++)
                    CHECK_INT(owner[i], slow[i]);
                for (int rank = 0; rank < world; rank++)
                    CHECK_INT(loads[rank], slow_loads[rank]);
                CHECK_INT(lr_balance(n, weights, world, owner), LR_OK);
                CHECK(memcmp(owner, slow, (size_t)n * sizeof *owner) == 0);
            }
}

/* Lengths as in code: of 64 pairs for each rank, half have fewer than 100 tokens and a few the limit of 512. */
TEST(tokens_come_out_even)
{
    enum { PAIRS = 64 };
    static int64_t weights[8 * PAIRS], heap[8 * PAIRS], loads[8];
    static int32_t owner[8 * PAIRS];
    for (int world = 2; world <= 8; world *= 2)
        for (uint32_t batch = 0; batch < 20; batch++) {
            const int64_t n = world * PAIRS;
            draw(weights, n, 1000, 1000 + batch);
            int64_t total = 0, most = 0;
            for (int64_t i = 0; i < n; i++)
                total += weights[i] = 20 + weights[i] * weights[i] * 492 / 999 / 999;
            lr_balance_into(n, weights, world, owner, loads, heap);
            for (int rank = 0; rank < world; rank++)
                most = lr_max64(most, loads[rank]);
            CHECK((double)total / world / (double)most > 0.998);
        }
}

TEST(wrong_arguments)
{
    int32_t owner[2] = {7, 7};
    CHECK_INT(lr_balance(2, (int64_t[]){1, 2}, 0, owner), LR_EINVAL);
    CHECK_STR(lr_last_error(), "2 items cannot be divided among 0 ranks");
    CHECK_INT(lr_balance(-1, NULL, 1, owner), LR_EINVAL);
    CHECK_INT(lr_balance(2, (int64_t[]){1, -2}, 3, owner), LR_EINVAL);
    CHECK_STR(lr_last_error(), "item 1 weighs -2, expected 0 or more and a sum below 2^63");
    CHECK_INT(lr_balance(2, (int64_t[]){INT64_MAX, 1}, 3, owner), LR_EINVAL);
    lr_memory_fail(0, 1);
    const int status = lr_balance(2, (int64_t[]){1, 2}, 3, owner);
    lr_memory_fail(-1, 0);
    CHECK_INT(status, LR_ENOMEM);
    CHECK_INT(owner[0], 7);
    CHECK_INT(owner[1], 7);
}

TEST_MAIN()
