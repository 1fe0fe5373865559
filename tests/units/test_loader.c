/* test_loader.c: the loader, with a tokenizer whose ids are easy to predict. Batches come back in order and whole, whatever the
 * number of threads; errors come with the batch that they belong to; failing allocations, and freeing the loader while it works,
 * do no harm. */
#define _GNU_SOURCE
#include "folder.h"
#include <time.h>

/* ---- the tokenizer: a word is a token, its id 10 + its length; 1 before and 2 after every text ------------------- */
struct lr_tokenizer {
    int slow; /* milliseconds for each text */
};
static const lr_tokenizer WORDS = {0}, SLOW = {1};

int lr_tokenizer_encode(const lr_tokenizer *tok, const char *text, int64_t size, int add_special_tokens,
                        int64_t max_length, int32_t *ids, int64_t cap, int64_t *count)
{
    if (tok->slow > 0)
        nanosleep(&(struct timespec){.tv_nsec = tok->slow * 1000000L}, NULL);
    void *scratch = lr_alloc(8); /* as a real one does */
    if (scratch == NULL)
        return LR_ENOMEM;
    lr_free(scratch);
    if (size == 5 && memcmp(text, "wrong", 5) == 0)
        return lr_fail(LR_EINVAL, "the tokenizer does not like '%.*s'", (int)size, text);
    const int64_t special = add_special_tokens ? 1 : 0;
    const int64_t most = max_length > 0 ? max_length - 2 * special : INT64_MAX;
    int64_t n = 0, words = 0;
    if (size == 7 && memcmp(text, "nothing", 7) == 0) {
        *count = 0;
        return LR_OK;
    }
    if (special && n++ < cap)
        ids[0] = 1;
    for (int64_t at = 0; at < size && words < most; words++) {
        const int64_t begin = at;
        while (at < size && text[at] != ' ')
            at++;
        if (n++ < cap)
            ids[n - 1] = (int32_t)(10 + at - begin);
        at++;
    }
    if (special && n++ < cap)
        ids[n - 1] = 2;
    *count = n;
    return LR_OK;
}

/* ---- data -------------------------------------------------------------------------------------------------------- */
enum { ROWS = 200 };

/* Row r: "line" has r % 7 words, "context" r words; the score is r. */
static lr_dataset *open_rows(void)
{
    static const char *const columns[] = {"line", "score", "context"};
    static const int kinds[] = {LR_COLUMN_TEXT, LR_COLUMN_NUMBER, LR_COLUMN_TEXT};
    static char bytes[ROWS * 1500];
    size_t n = 0;
    for (int r = 0; r < ROWS; r++) {
        n += (size_t)sprintf(bytes + n, "{\"line\":\"");
        for (int i = 0; i < r % 7; i++)
            n += (size_t)sprintf(bytes + n, "%sw%d", i ? " " : "", r * r);
        n += (size_t)sprintf(bytes + n, "\",\"score\":%d,\"context\":\"", r);
        for (int i = 0; i < r; i++)
            n += (size_t)sprintf(bytes + n, "%s%.*s", i ? " " : "", 1 + (r + i) % 4, "wxyz");
        n += (size_t)sprintf(bytes + n, "%s\"}\n", r == 100 ? " \\u00e9" : "");
    }
    lr_dataset *d = NULL;
    CHECK_INT(lr_dataset_open(&d, write_in_folder("rows.jsonl", bytes, n), columns, kinds, 3, LR_BAD_ROW_ERROR, 0),
              LR_OK);
    return d;
}

static lr_dataset *open_lines(const char *contents)
{
    static const char *const columns[] = {"line"};
    static const int kinds[] = {LR_COLUMN_TEXT};
    lr_dataset *d = NULL;
    CHECK_INT(lr_dataset_open(&d, text_in_folder("lines.csv", contents), columns, kinds, 1, LR_BAD_ROW_ERROR, 0),
              LR_OK);
    return d;
}

enum { SEQUENCES = 9 };

static int submit(lr_loader *l, int64_t number)
{
    int64_t rows[SEQUENCES], keys[SEQUENCES];
    int32_t columns[SEQUENCES];
    for (int i = 0; i < SEQUENCES; i++) {
        rows[i] = (number * 31 + i * 17) % ROWS;
        columns[i] = i % 2 == 0 ? 0 : 2;
        keys[i] = number * SEQUENCES + i;
    }
    return lr_loader_submit(l, SEQUENCES, rows, columns, keys);
}

/* The batch must be what submit() asked for. */
static void check_batch(const lr_batch *b, int64_t number, int64_t max_length)
{
    int64_t tokens = 0, longest = 0, truncated = 0;
    CHECK_INT(b->sequences, SEQUENCES);
    CHECK_INT(b->cu_seqlens[0], 0);
    for (int i = 0; i < SEQUENCES; i++) {
        const int64_t r = (number * 31 + i * 17) % ROWS;
        const int64_t whole = (i % 2 == 0 ? r % 7 : r + (r == 100) + 2) + 2; /* "a prefix" is two words */
        const int64_t length = max_length > 0 ? lr_min64(whole, max_length) : whole;
        CHECK_INT(b->cu_seqlens[i], tokens);
        for (int64_t k = 0; k < length; k++) {
            const int64_t t = tokens + k, word = k - (i % 2 == 0 ? 1 : 3);
            CHECK_INT(b->positions[t], k);
            CHECK_INT(b->keys[t], (number * SEQUENCES + i) << 16 | k);
            char digits[24];
            const int64_t size = i % 2 == 0   ? snprintf(digits, sizeof digits, "w%lld", (long long)(r * r))
                                 : word == -2 ? 1
                                 : word == -1 ? 6
                                 : word == r  ? 2
                                              : 1 + (r + word) % 4;
            CHECK_INT(b->ids[t], k == 0 ? 1 : k == length - 1 ? 2 : 10 + size);
        }
        tokens += length;
        longest = lr_max64(longest, length);
        truncated += length < whole;
    }
    CHECK_INT(b->cu_seqlens[SEQUENCES], tokens);
    CHECK_INT(b->tokens, tokens);
    CHECK_INT(b->max_length, longest);
    CHECK_INT(b->truncated, truncated);
    CHECK(b->wait >= 0.0);
}

static const char *const PREFIXES[] = {NULL, NULL, "a prefix "};

TEST(batches_come_in_order_and_whole)
{
    lr_dataset *d = open_rows();
    for (int threads = 1; threads <= 4; threads++)
        for (int queue = 1; queue <= 5; queue += 2)
            for (int64_t max_length = 0; max_length <= 60; max_length += 20) {
                lr_loader *l = NULL;
                lr_batch b;
                CHECK_INT(lr_loader_new(&l, d, &WORDS, max_length, PREFIXES, threads, queue), LR_OK);
                for (int64_t in = 0, out = 0; out < 40; out++) {
                    while (in < 40 && lr_loader_room(l) > 0)
                        CHECK_INT(submit(l, in++), LR_OK);
                    CHECK_INT(lr_loader_room(l), lr_max64(queue - (in - out), 0));
                    CHECK_INT(lr_loader_next(l, &b), LR_OK);
                    if (in < 40) /* the batch from next() stays while another is made */
                        CHECK_INT(submit(l, in++), LR_OK);
                    check_batch(&b, out, max_length);
                }
                CHECK_INT(lr_loader_next(l, &b), LR_EEND);
                lr_loader_free(l);
            }
    lr_dataset_close(d);
}

/* ---- balancing over ranks ------------------------------------------------------------------------------------------ */
/* SEQUENCES are three groups of three: 0 3 6, 1 4 7, 2 5 8. */
enum { WIDTH = 3, GROUPS = SEQUENCES / WIDTH, MOST_RANKS = 5 };

static int64_t tokens_of(const lr_batch *b, int64_t sequence)
{
    return b->cu_seqlens[sequence + 1] - b->cu_seqlens[sequence];
}

/* The share of a rank must be its part of the whole batch. */
static void check_share(const lr_batch *share, const lr_batch *whole, int world, int rank)
{
    int64_t weights[GROUPS] = {0}, tokens[MOST_RANKS] = {0}, kept = 0, longest = 0;
    int32_t owner[GROUPS];
    for (int i = 0; i < SEQUENCES; i++) {
        CHECK_INT(share->lengths[i], tokens_of(whole, i));
        weights[i % GROUPS] += share->lengths[i];
    }
    CHECK_INT(lr_balance(GROUPS, weights, world, owner), LR_OK);
    for (int g = 0; g < GROUPS; g++) {
        CHECK_INT(share->owner[g], owner[g]);
        tokens[owner[g]] += weights[g];
    }
    for (int r = 0; r < world; r++)
        CHECK_INT(share->rank_tokens[r], tokens[r]);
    for (int i = 0; i < SEQUENCES; i++) {
        if (owner[i % GROUPS] != rank)
            continue;
        const int64_t length = share->lengths[i], at = share->cu_seqlens[kept], from = whole->cu_seqlens[i];
        CHECK(kept < share->sequences);
        CHECK_INT(tokens_of(share, kept++), length);
        CHECK(memcmp(share->ids + at, whole->ids + from, (size_t)length * sizeof *share->ids) == 0);
        CHECK(memcmp(share->positions + at, whole->positions + from, (size_t)length * sizeof *share->positions) == 0);
        CHECK(memcmp(share->keys + at, whole->keys + from, (size_t)length * sizeof *share->keys) == 0);
        longest = lr_max64(longest, length);
    }
    CHECK_INT(share->sequences, kept);
    CHECK_INT(share->cu_seqlens[0], 0);
    CHECK_INT(share->tokens, tokens[rank]);
    CHECK_INT(share->max_length, longest);
    CHECK_INT(share->truncated, whole->truncated);
}

TEST(every_sequence_is_in_one_share)
{
    lr_dataset *d = open_rows();
    for (int world = 1; world <= MOST_RANKS; world++)
        for (int rank = 0; rank < world; rank++) {
            lr_loader *all, *balanced;
            CHECK_INT(lr_loader_new(&all, d, &WORDS, 40, PREFIXES, 1, 2), LR_OK);
            CHECK_INT(lr_loader_new(&balanced, d, &WORDS, 40, PREFIXES, 1 + rank, 3), LR_OK);
            CHECK_INT(lr_loader_balance(balanced, WIDTH, world, rank), LR_OK);
            for (int64_t number = 0; number < 30; number++) {
                lr_batch whole, share;
                CHECK_INT(submit(all, number), LR_OK);
                CHECK_INT(submit(balanced, number), LR_OK);
                CHECK_INT(lr_loader_next(all, &whole), LR_OK);
                CHECK_INT(lr_loader_next(balanced, &share), LR_OK);
                CHECK(whole.owner == NULL && whole.lengths == NULL && whole.rank_tokens == NULL);
                check_share(&share, &whole, world, rank);
                if (world == 1)
                    check_batch(&share, number, 40);
            }
            lr_loader_free(all);
            lr_loader_free(balanced);
        }
    lr_dataset_close(d);
}

TEST(wrong_shares)
{
    lr_dataset *d = open_rows();
    lr_loader *l;
    CHECK_INT(lr_loader_new(&l, d, &WORDS, 0, NULL, 1, 1), LR_OK);
    CHECK_INT(lr_loader_balance(l, 1, 2, 2), LR_EINVAL);
    CHECK_STR(lr_last_error(), "rank 2 of 2 cannot have a share in groups of 1");
    CHECK_INT(lr_loader_balance(l, 1, 2, -1), LR_EINVAL);
    CHECK_INT(lr_loader_balance(l, 0, 1, 0), LR_EINVAL);
    CHECK_INT(lr_loader_balance(l, 1, 0, 0), LR_EINVAL);
    CHECK_INT(lr_loader_balance(l, 2, 2, 1), LR_OK);
    CHECK_INT(submit(l, 0), LR_EINVAL);
    CHECK_STR(lr_last_error(), "a batch of 9 sequences cannot be divided into groups of 2");
    CHECK_INT(lr_loader_balance(l, WIDTH, 2, 1), LR_OK);
    CHECK_INT(submit(l, 0), LR_OK);
    CHECK_INT(lr_loader_balance(l, WIDTH, 2, 1), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "batches were submitted already");
    lr_loader_free(l);
    lr_dataset_close(d);
}

static void steady_work(int64_t width)
{
    lr_dataset *d = open_rows();
    lr_loader *l;
    lr_batch b;
    CHECK_INT(lr_loader_new(&l, d, &WORDS, 0, NULL, 1, 1), LR_OK);
    if (width > 0)
        CHECK_INT(lr_loader_balance(l, width, 2, 0), LR_OK);
    int64_t before = 0;
    for (int64_t i = 0; i < 30; i++) {
        if (i == 10)
            before = lr_memory_attempts();
        CHECK_INT(submit(l, 3), LR_OK);
        CHECK_INT(lr_loader_next(l, &b), LR_OK);
    }
    CHECK_INT(lr_memory_attempts() - before, 20 * SEQUENCES); /* the tokenizer's */
    lr_loader_free(l);
    lr_dataset_close(d);
}

TEST(steady_work_allocates_nothing_of_its_own)
{
    steady_work(0);
    steady_work(WIDTH);
}

TEST(errors_belong_to_their_batch)
{
    lr_dataset *d = open_lines("line\nfine\nwrong\n\"two\nlines\"\nnothing\nlast\n");
    static const char *const why[] = {NULL, "lines.csv:3: column 'line': the tokenizer does not like 'wrong'", NULL,
                                      "lines.csv:6: column 'line': the text gives no tokens", NULL};
    for (int threads = 1; threads <= 4; threads++) {
        lr_loader *l;
        CHECK_INT(lr_loader_new(&l, d, &WORDS, 16, NULL, threads, 5), LR_OK);
        for (int64_t row = 0; row < 5; row++)
            CHECK_INT(lr_loader_submit(l, 1, &row, &(int32_t){0}, &row), LR_OK);
        for (int64_t row = 0; row < 5; row++) {
            lr_batch b = {.tokens = -1};
            CHECK_INT(lr_loader_next(l, &b), why[row] ? LR_EINVAL : LR_OK);
            if (why[row])
                CHECK_HAS(lr_last_error(), why[row]);
            CHECK_INT(b.tokens, why[row] ? -1 : 3);
        }
        lr_loader_free(l);
    }
    lr_dataset_close(d);
}

TEST(wrong_arguments)
{
    lr_dataset *d = open_rows();
    lr_loader *l = NULL;
    CHECK_INT(lr_loader_new(&l, d, &WORDS, 65536, NULL, 1, 1), LR_EINVAL);
    CHECK_STR(lr_last_error(), "max_length is 65536, expected 1 to 65535, or 0 for no limit");
    CHECK_INT(lr_loader_new(&l, d, &WORDS, -1, NULL, 1, 1), LR_EINVAL);
    CHECK_INT(lr_loader_new(&l, d, &WORDS, 0, NULL, 0, 1), LR_EINVAL);
    CHECK_STR(lr_last_error(), "a loader with 0 threads, expected 1 to 256");
    CHECK_INT(lr_loader_new(&l, d, &WORDS, 0, NULL, 1, 0), LR_EINVAL);
    CHECK_STR(lr_last_error(), "a loader's queue of 0 batches, expected 1 to 4096");
    CHECK(l == NULL);
    CHECK_INT(lr_loader_new(&l, d, &WORDS, 0, NULL, 1, 1), LR_OK);
    static const struct {
        int64_t n, row;
        int32_t column;
        int64_t key;
        const char *why;
    } cases[] = {
        {0, 0, 0, 0, "a batch of 0 sequences, expected 1 or more"},
        {1, ROWS, 0, 0, "sequence 0: there is no row 200 in "},
        {1, -1, 0, 0, "sequence 0: there is no row -1 in "},
        {1, 0, 1, 0, "sequence 0: column 1 of "},
        {1, 0, 3, 0, "sequence 0: column 3 of "},
        {1, 0, -1, 0, "sequence 0: column -1 of "},
        {1, 0, 0, -1, "sequence 0: key -1, expected 0 to 140737488355327"},
        {1, 0, 0, (int64_t)1 << 47, "sequence 0: key 140737488355328, expected 0 to 140737488355327"},
    };
    for (size_t i = 0; i < LR_COUNT_OF(cases); i++) {
        CHECK_INT(lr_loader_submit(l, cases[i].n, &cases[i].row, &cases[i].column, &cases[i].key), LR_EINVAL);
        CHECK_HAS(lr_last_error(), cases[i].why);
        CHECK_INT(lr_loader_room(l), 1);
    }
    lr_batch b;
    CHECK_INT(lr_loader_next(l, &b), LR_EEND);
    CHECK_INT(submit(l, 0), LR_OK);
    CHECK_INT(submit(l, 1), LR_EINVAL);
    CHECK_STR(lr_last_error(), "the loader's queue of 1 batches is full; take one with next first");
    lr_loader_free(l);
    lr_dataset_close(d);
}

TEST(too_many_positions_are_refused)
{
    enum { WORDS_MAX = 65533 };
    char *text = malloc(2 * (WORDS_MAX + 1));
    for (int i = 0; i <= WORDS_MAX; i++)
        memcpy(text + 2 * i, "w ", 2);
    for (int over = 0; over < 2; over++) {
        lr_loader *l = NULL;
        lr_batch b;
        const int64_t size = 2 * (WORDS_MAX + over);
        CHECK_INT(lr_loader_pack(&l, &WORDS, 1, &(const char *){text}, &size, 0, &b), over ? LR_EINVAL : LR_OK);
        if (over)
            CHECK_STR(lr_last_error(),
                      "text 1 of 1: the text has 65536 tokens, at most 65535 are possible; set max_length");
        else
            CHECK_INT(b.keys[65534], 65534);
        lr_loader_free(l);
    }
    const int64_t size = 2 * (WORDS_MAX + 1);
    lr_loader *l;
    lr_batch b;
    CHECK_INT(lr_loader_pack(&l, &WORDS, 1, &(const char *){text}, &size, 65535, &b), LR_OK);
    CHECK_INT(b.tokens, 65535);
    CHECK_INT(b.truncated, 1);
    lr_loader_free(l);
    free(text);
}

TEST(texts_are_packed_at_once)
{
    static const char *const texts[] = {"one two", "", "a bb ccc dddd"};
    static const int64_t sizes[] = {7, 0, 13};
    static const int32_t ids[] = {1, 13, 13, 2, 1, 2, 1, 11, 12, 2}, positions[] = {0, 1, 2, 3, 0, 1, 0, 1, 2, 3};
    lr_loader *l;
    lr_batch b;
    CHECK_INT(lr_loader_pack(&l, &WORDS, 3, texts, sizes, 4, &b), LR_OK);
    CHECK_INT(b.tokens, 10);
    CHECK_INT(b.sequences, 3);
    CHECK_INT(b.max_length, 4);
    CHECK_INT(b.truncated, 1);
    CHECK(memcmp(b.ids, ids, sizeof ids) == 0);
    CHECK(memcmp(b.positions, positions, sizeof positions) == 0);
    CHECK(memcmp(b.cu_seqlens, (int32_t[]){0, 4, 6, 10}, 16) == 0);
    CHECK_INT(b.keys[9], 2 << 16 | 3);
    CHECK_INT(lr_loader_room(l), 0);
    CHECK_INT(lr_loader_submit(l, 1, &(int64_t){0}, &(int32_t){0}, &(int64_t){0}), LR_EINVAL);
    CHECK_INT(lr_loader_next(l, &b), LR_EEND);
    lr_loader_free(l);
    l = NULL;
    CHECK_INT(lr_loader_pack(&l, &WORDS, 2, (const char *const[]){"x", "wrong"}, (int64_t[]){1, 5}, 4, &b), LR_EINVAL);
    CHECK_STR(lr_last_error(), "text 2 of 2: the tokenizer does not like 'wrong'");
    CHECK_INT(lr_loader_pack(&l, &WORDS, 0, texts, sizes, 4, &b), LR_EINVAL);
    CHECK(l == NULL);
}

TEST(a_loader_may_be_freed_amid_its_work)
{
    lr_dataset *d = open_rows();
    for (int taken = 0; taken < 6; taken++)
        for (int threads = 1; threads <= 4; threads++) {
            lr_loader *l;
            lr_batch b;
            CHECK_INT(lr_loader_new(&l, d, &SLOW, 0, NULL, threads, 8), LR_OK);
            for (int64_t i = 0; i < 8; i++)
                CHECK_INT(submit(l, i), LR_OK);
            for (int i = 0; i < taken; i++)
                CHECK_INT(lr_loader_next(l, &b), LR_OK);
            lr_loader_free(l);
        }
    lr_dataset_close(d);
}

TEST(waiting_is_measured)
{
    lr_dataset *d = open_rows();
    lr_loader *l;
    lr_batch b;
    CHECK_INT(lr_loader_new(&l, d, &SLOW, 0, NULL, 1, 1), LR_OK);
    CHECK_INT(submit(l, 0), LR_OK);
    CHECK_INT(lr_loader_next(l, &b), LR_OK);
    CHECK(b.wait > 0.001); /* nine texts of a millisecond each */
    lr_loader_free(l);
    lr_dataset_close(d);
}

/* The k-th allocation and all later ones fail, for every k: an error or the right batches, which still come once there is memory
 * again. */
TEST(every_allocation_may_fail)
{
    lr_dataset *d = open_rows();
    for (int threads = 1; threads <= 3; threads += 2) {
        int clean = 0;
        for (int64_t after = 0; clean < 1; after++) {
            lr_loader *l = NULL;
            lr_memory_fail(after, after % 2 ? 1 : 100000);
            int failures = 0, status = lr_loader_new(&l, d, &WORDS, 20, PREFIXES, threads, 2);
            CHECK(status == LR_OK || (status == LR_ENOMEM && l == NULL));
            if (l != NULL && threads > 1) /* one that balances over a single rank: its share is the batch */
                CHECK_INT(lr_loader_balance(l, WIDTH, 1, 0), LR_OK);
            for (int64_t batch = 0; l != NULL && batch < 3; batch++) {
                while ((status = submit(l, batch)) == LR_ENOMEM) {
                    failures++;
                    lr_memory_fail(-1, 0);
                }
                CHECK_INT(status, LR_OK);
                lr_batch b;
                while ((status = lr_loader_next(l, &b)) == LR_ENOMEM) {
                    CHECK_HAS(lr_last_error(), "out of host memory");
                    if (++failures > 1)
                        lr_memory_fail(-1, 0);
                }
                CHECK_INT(status, LR_OK);
                check_batch(&b, batch, 20);
            }
            lr_memory_fail(-1, 0);
            clean += l != NULL && failures == 0;
            lr_loader_free(l);
            CHECK(after < 1000);
        }
    }
    for (int64_t after = 0, done = 0; !done; after++) {
        lr_loader *l = NULL;
        lr_batch b;
        lr_memory_fail(after, 1000);
        const int status = lr_loader_pack(&l, &WORDS, 2, (const char *const[]){"a b", "c"}, (int64_t[]){3, 1}, 8, &b);
        lr_memory_fail(-1, 0);
        CHECK(status == LR_OK || (status == LR_ENOMEM && l == NULL));
        done = status == LR_OK;
        lr_loader_free(l);
    }
    lr_dataset_close(d);
}

TEST_MAIN()
