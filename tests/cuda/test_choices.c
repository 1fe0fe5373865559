/* test_choices.c: which algorithm makes a product, with a library made up here: what is timed, what is kept, what two ranks agree
 * on, and what becomes of a file that is damaged, another's, or cannot be written. */
#include "cuda/choices.h"
#include "folder.h"
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* A library of `count` algorithms; number i takes time[i] seconds, and below 0 fails. */
typedef struct fake {
    int count, status;
    double time[LR_CHOICE_CANDIDATES];
    int asked, runs;
} fake;

static int candidates(void *context, lr_algorithm *out, int *count)
{
    fake *f = context;
    f->asked++;
    for (int i = 0; i < f->count; i++)
        out[i] = (lr_algorithm){{(uint64_t)i, UINT64_MAX - (uint64_t)i}};
    *count = f->count;
    return f->status == LR_OK ? LR_OK : lr_fail(f->status, "made up");
}

static int seconds(void *context, const lr_algorithm *a, int runs, double *out)
{
    fake *f = context;
    f->runs += runs;
    *out = f->time[a->words[0]] * runs;
    return *out >= 0.0 ? LR_OK : lr_fail(LR_EUNSUPPORTED, "made up");
}

static lr_choice_library library_of(fake *f)
{
    return (lr_choice_library){f, candidates, seconds};
}

static lr_choice_key key_of(int64_t m)
{
    lr_choice_key key;
    memset(&key, 0, sizeof key);
    key.m = m;
    key.n = 4608;
    key.k = 3584;
    key.alignment[0] = 256;
    key.deterministic = 1;
    return key;
}

/* The number of the algorithm chosen. */
static int64_t chosen(lr_choices *c, lr_choice_key key, fake *f)
{
    const lr_choice_library library = library_of(f);
    lr_algorithm a = {{99}};
    CHECK_INT(lr_choose(c, &key, &library, &a), LR_OK);
    CHECK(a.words[1] == UINT64_MAX - a.words[0]);
    return (int64_t)a.words[0];
}

static lr_choices book, other; /* too large for a stack */
static const char *const GPU = "Made up H100 80GB/HBM3 132";

/* An empty folder of its own for each test, named after it. */
static const char *opened(lr_choices *c, const char *name)
{
    const char *folder = in_folder(name);
    lr_choices_open(c, folder, GPU, 130000);
    return folder;
}

static void write_text(const char *path, const char *text, int64_t size)
{
    CHECK_INT(lr_file_write(path, text, size), LR_OK);
}

TEST(tokens_are_rounded_up_to_few_counts)
{
    int64_t last = 0, steps = 0;
    for (int64_t n = 1; n <= 65536; n++) {
        const int64_t r = lr_choice_tokens(n);
        CHECK(r >= n && r >= last && r - n < (n <= 128 ? 16 : n <= 1024 ? 128 : n / 8 + 1));
        CHECK_INT(lr_choice_tokens(r), r);
        steps += r != last;
        last = r;
    }
    CHECK_INT(lr_choice_tokens(1), 16);
    CHECK_INT(lr_choice_tokens(129), 256);
    CHECK_INT(lr_choice_tokens(8193), 9216);
    CHECK(steps < 70);
}

TEST(the_fastest_is_chosen_and_known_afterwards)
{
    fake f = {.count = 4, .time = {4e-3, 3e-3, 1e-3, 2e-3}};
    opened(&book, "fastest");
    CHECK_INT(chosen(&book, key_of(1024), &f), 2);
    const int runs = f.runs;
    CHECK(runs > 8);
    CHECK_INT(chosen(&book, key_of(1024), &f), 2);
    CHECK_INT(f.runs, runs);
    CHECK_INT(f.asked, 1);
    f = (fake){.count = 4, .time = {1e-3, 3e-3, 4e-3, 2e-3}}; /* other times: the file decides */
    opened(&book, "fastest");
    CHECK_INT(chosen(&book, key_of(1024), &f), 2);
    CHECK_INT(f.asked, 0);
    CHECK_INT(chosen(&book, key_of(2048), &f), 0);
}

TEST(what_is_as_fast_is_taken_in_the_librarys_order)
{
    fake f = {.count = 3, .time = {1.005e-3, 1e-3, 1.001e-3}};
    opened(&book, "order");
    CHECK_INT(chosen(&book, key_of(1024), &f), 0);
}

TEST(algorithms_that_fail_are_passed_over)
{
    fake f = {.count = 3, .time = {-1, 2e-3, 3e-3}};
    opened(&book, "failing");
    CHECK_INT(chosen(&book, key_of(1024), &f), 1);
    f = (fake){.count = 2, .time = {-1, -1}}; /* a broken device: the library's first, for this run */
    CHECK_INT(chosen(&book, key_of(2048), &f), 0);
    CHECK_INT(chosen(&book, key_of(2048), &f), 0);
    CHECK_INT(f.asked, 1);
    f = (fake){.count = 2, .time = {2e-3, 1e-3}};
    opened(&book, "failing");
    CHECK_INT(chosen(&book, key_of(2048), &f), 1);
    CHECK_INT(f.asked, 1);
}

TEST(errors_of_the_library_are_told_and_nothing_is_kept)
{
    fake f = {.count = 0};
    lr_choice_library library = library_of(&f);
    const lr_choice_key key = key_of(77);
    lr_algorithm a;
    opened(&book, "errors");
    CHECK_INT(lr_choose(&book, &key, &library, &a), LR_EUNSUPPORTED);
    CHECK_HAS(lr_last_error(), "77 x 4608 x 3584");
    f = (fake){.count = 1, .status = LR_EINTERNAL};
    CHECK_INT(lr_choose(&book, &key, &library, &a), LR_EINTERNAL);
    CHECK_STR(lr_last_error(), "made up");
    CHECK_INT(book.count, 0);
}

TEST(without_timing_the_first_is_taken)
{
    fake f = {.count = 3, .time = {3e-3, 2e-3, 1e-3}};
    lr_choice_library library = library_of(&f);
    library.seconds = NULL;
    const lr_choice_key key = key_of(1024);
    lr_algorithm a;
    opened(&book, "untimed");
    CHECK_INT(lr_choose(&book, &key, &library, &a), LR_OK);
    CHECK_INT(a.words[0], 0);
}

/* Without a file the next run could measure otherwise. */
TEST(what_cannot_be_kept_is_not_timed_unless_any_bits_will_do)
{
    fake f = {.count = 3, .time = {3e-3, 2e-3, 1e-3}};
    write_text(in_folder("a_file"), "x", 1);
    opened(&book, "a_file/below");
    CHECK_INT(chosen(&book, key_of(1024), &f), 0);
    CHECK_INT(f.runs, 0);
    lr_choice_key key = key_of(1024);
    key.deterministic = 0;
    CHECK_INT(chosen(&book, key, &f), 2);
    const int runs = f.runs;
    CHECK_INT(chosen(&book, key, &f), 2);
    CHECK_INT(f.runs, runs);
}

TEST(a_file_that_can_only_be_read_is_read)
{
    fake f = {.count = 3, .time = {3e-3, 2e-3, 1e-3}};
    const char *folder = opened(&book, "readable");
    CHECK_INT(chosen(&book, key_of(1024), &f), 2);
    char lock[1024];
    snprintf(lock, sizeof lock, "%s.lock", book.path);
    CHECK_INT(lr_tree_remove(lock), LR_OK);
    CHECK_INT(lr_dir_make(lock), LR_OK); /* cannot be opened for writing, not even by root */
    lr_choices_open(&book, folder, GPU, 130000);
    f = (fake){.count = 3, .time = {3e-3, 2e-3, 1e-3}};
    CHECK_INT(chosen(&book, key_of(1024), &f), 2);
    CHECK_INT(f.asked, 0);
    CHECK_INT(chosen(&book, key_of(2048), &f), 0);
    CHECK_INT(f.runs, 0);
}

/* The folder goes away while the program runs: what the file would not tell the next run is not used. */
TEST(a_choice_that_could_not_be_written_is_the_librarys_first)
{
    fake f = {.count = 3, .time = {3e-3, 2e-3, 1e-3}};
    const char *folder = opened(&book, "gone");
    CHECK_INT(chosen(&book, key_of(1024), &f), 2);
    CHECK_INT(lr_tree_remove(folder), LR_OK);
    CHECK_INT(chosen(&book, key_of(2048), &f), 0);
    CHECK_INT(chosen(&book, key_of(2048), &f), 0);
    CHECK_INT(chosen(&book, key_of(1024), &f), 2);
}

/* Every part of the key tells products apart, and every choice survives the file. */
TEST(keys_differ_in_every_field)
{
    fake f = {.count = 2, .time = {1e-3, 2e-3}};
    opened(&book, "fields");
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < offsetof(lr_choice_key, unused); i++) {
            lr_choice_key key = key_of(1024);
            ((unsigned char *)&key)[i] ^= 1;
            const double time = i % 3 == 0 ? 5e-4 : 5e-3;
            f.time[1] = time;
            CHECK_INT(chosen(&book, key, &f), i % 3 == 0);
        }
        CHECK_INT(f.asked, offsetof(lr_choice_key, unused));
        CHECK_INT(book.count, offsetof(lr_choice_key, unused));
        opened(&book, "fields");
    }
}

TEST(two_ranks_that_choose_at_once_agree)
{
    fake mine = {.count = 2, .time = {2e-3, 1e-3}}, theirs = {.count = 2, .time = {1e-3, 2e-3}};
    opened(&book, "agree");
    opened(&other, "agree");
    CHECK_INT(chosen(&other, key_of(1024), &theirs), 0);
    CHECK_INT(chosen(&book, key_of(1024), &mine), 0); /* not what was measured here: the first to write is followed */
    CHECK_INT(chosen(&book, key_of(2048), &mine), 1);
    CHECK_INT(chosen(&other, key_of(4096), &theirs), 0);
    opened(&book, "agree");
    CHECK_INT(book.count, 3);
}

TEST(many_ranks_lose_no_choice)
{
    enum { RANKS = 4, EACH = 25 };
    opened(&book, "ranks");
    pid_t pids[RANKS];
    for (int r = 0; r < RANKS; r++) {
        pids[r] = fork();
        CHECK(pids[r] >= 0);
        if (pids[r] == 0) {
            fake f = {.count = 2, .time = {1e-3, 2e-3}};
            const lr_choice_library library = library_of(&f);
            lr_algorithm a;
            int bad = 0;
            for (int i = 0; i < EACH; i++) { /* half of them are every rank's */
                const lr_choice_key key = key_of(i % 2 == 0 ? i : 1000 * (r + 1) + i);
                bad += lr_choose(&book, &key, &library, &a) != LR_OK;
            }
            _exit(bad != 0 || book.path[0] == 0);
        }
    }
    for (int r = 0; r < RANKS; r++) {
        int status = -1;
        CHECK(waitpid(pids[r], &status, 0) == pids[r]);
        CHECK_INT(status, 0);
    }
    opened(&book, "ranks");
    CHECK_INT(book.count, (EACH + 1) / 2 + RANKS * (EACH / 2));
}

/* A rank that was stopped while it held the lock: the others do not wait for ever, and choose what the next run will. */
TEST(a_lock_that_is_held_costs_a_choice_not_the_run)
{
    fake f = {.count = 2, .time = {2e-3, 1e-3}};
    opened(&book, "held");
    char lock[1024];
    snprintf(lock, sizeof lock, "%s.lock", book.path);
    const int fd = open(lock, O_RDWR | O_CREAT, 0666);
    CHECK(fd >= 0);
    CHECK_INT(flock(fd, LOCK_EX), 0);
    CHECK_INT(chosen(&book, key_of(1024), &f), 0);
    close(fd);
}

/* What standard error got from `call`, which must not be more than one line. */
static const char *said(void (*call)(void))
{
    static char text[4096];
    const char *path = in_folder("stderr");
    (void)fflush(stderr);
    const int keep = dup(2), fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(keep >= 0 && fd >= 0 && dup2(fd, 2) == 2);
    call();
    (void)fflush(stderr);
    dup2(keep, 2);
    close(keep);
    const ssize_t n = pread(fd, text, sizeof text - 1, 0);
    close(fd);
    CHECK(n >= 0);
    text[n] = 0;
    const char *end = strchr(text, '\n');
    CHECK(end == NULL || end[1] == 0);
    return text;
}

static void reopen(void)
{
    char folder[512];
    snprintf(folder, sizeof folder, "%s", book.path);
    *strrchr(folder, '/') = 0;
    lr_choices_open(&book, folder, GPU, 130000);
}

TEST(a_damaged_file_is_told_once_and_written_anew)
{
    fake f = {.count = 2, .time = {2e-3, 1e-3}};
    opened(&book, "damaged");
    CHECK_INT(chosen(&book, key_of(1024), &f), 1);
    CHECK_INT(chosen(&book, key_of(2048), &f), 1);
    CHECK_STR(said(reopen), "");
    CHECK_INT(book.count, 2);
    char *text, path[512];
    int64_t size;
    snprintf(path, sizeof path, "%s", book.path);
    CHECK_INT(lr_file_read(path, &text, &size), LR_OK);
    for (int64_t cut = 0; cut < size; cut++) { /* cut short anywhere, */
        write_text(path, text, cut);
        const char *line = said(reopen);
        CHECK_HAS(line, path);
        CHECK_HAS(line, "damaged");
        CHECK_INT(book.count, 0);
    }
    for (int64_t i = 0; i < size;
         i += 7) { /* or with any character changed (of the checksum's line, not every change matters) */
        text[i] ^= 1;
        write_text(path, text, size);
        said(reopen);
        CHECK(book.count == 0 || i > size - 17);
        text[i] ^= 1;
    }
    write_text(path, "\0\0\0", 3);
    CHECK_HAS(said(reopen), "damaged");
    lr_free(text);
    f = (fake){.count = 2, .time = {1e-3, 2e-3}};
    CHECK_INT(chosen(&book, key_of(1024), &f), 0);
    CHECK_STR(said(reopen), "");
    CHECK_INT(chosen(&book, key_of(1024), &f), 0);
    CHECK_INT(f.asked, 1);
}

TEST(another_gpu_or_version_has_a_file_of_its_own)
{
    fake f = {.count = 2, .time = {2e-3, 1e-3}};
    const char *folder = opened(&book, "others");
    CHECK_INT(chosen(&book, key_of(1024), &f), 1);
    lr_choices_open(&other, folder, GPU, 130001);
    CHECK_INT(other.count, 0);
    CHECK(strcmp(other.path, book.path) != 0);
    lr_choices_open(&other, folder, "Made up H100 80GB/HBM3 114", 130000);
    CHECK_INT(other.count, 0);
    CHECK_INT(lr_file_copy(book.path, other.path), LR_OK); /* moved by hand: not this GPU's */
    lr_choices_open(&other, folder, "Made up H100 80GB/HBM3 114", 130000);
    CHECK_INT(other.count, 0);
}

TEST(more_products_than_there_is_room_for)
{
    fake f = {.count = 1};
    lr_choices_open(&book, in_folder("a_file/below"), GPU, 1);
    for (int64_t m = 1; m <= LR_CHOICE_SLOTS + 10; m++)
        CHECK_INT(chosen(&book, key_of(m), &f), 0);
    CHECK(book.count < LR_CHOICE_SLOTS);
    CHECK_INT(chosen(&book, key_of(1), &f), 0);
    CHECK_INT(f.asked, LR_CHOICE_SLOTS + 10);
}

TEST(running_out_of_memory_costs_a_choice_at_most)
{
    fake f = {.count = 2, .time = {2e-3, 1e-3}};
    for (int64_t n = 0; n < 12; n++) {
        lr_memory_fail(n, 1);
        opened(&book, "memory");
        const int64_t a = chosen(&book, key_of(1024 * (n + 1)), &f);
        lr_memory_fail(-1, 0);
        CHECK(a == 0 || a == 1);
    }
    opened(&book, "memory");
    CHECK(book.count > 0);
}

TEST_MAIN()
