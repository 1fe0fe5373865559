/* choices.c: see choices.h.
 *
 * The file is text: a line for its form, GPU and version, one line for each choice, and a line with the checksum of all that. It
 * is read whole and written whole under another name that then takes its place, so readers see the old one or the new. Who
 * writes holds a lock (a file beside it) from reading to renaming, so that no rank's choice is lost. */
#include "choices.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

enum {
    /* Of the slots in use: a model in one precision needs a few hundred, and a fuller table takes long to search. */
    MOST = LR_CHOICE_SLOTS * 3 / 4,
    LINE = 768,
    WORDS = sizeof(lr_algorithm) / sizeof(uint64_t),
    LOCK_ATTEMPTS = 200, /* 10 ms apart: a rank that was stopped while it held the lock must not stop the others */
};

int64_t lr_choice_tokens(int64_t n)
{
    int64_t step = n <= 128 ? 16 : 128;
    while (n > 16 * step && step >= 128) /* from 1024 to 2048 by 128, from 2048 to 4096 by 256 ... */
        step *= 2;
    return (n + step - 1) / step * step;
}

/* ---- the table ------------------------------------------------------------------------------------------------------- */
static uint32_t hash_of(const lr_choice_key *key)
{
    const unsigned char *p = (const unsigned char *)key;
    uint32_t h = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < sizeof *key; i++)
        h = (h ^ p[i]) * 16777619u;
    return h;
}

/* The slot that has the key, or the free one where the key belongs. */
static lr_choice *slot_of(lr_choices *c, const lr_choice_key *key)
{
    uint32_t at = hash_of(key) % LR_CHOICE_SLOTS;
    while (c->slots[at].used && memcmp(&c->slots[at].key, key, sizeof *key) != 0)
        at = (at + 1) % LR_CHOICE_SLOTS;
    return &c->slots[at];
}

/* A choice that the key has already stays. */
static void add(lr_choices *c, const lr_choice *choice)
{
    lr_choice *slot = slot_of(c, &choice->key);
    if (slot->used || c->count >= MOST)
        return;
    *slot = *choice;
    slot->used = true;
    c->count++;
}

/* ---- the file's text ------------------------------------------------------------------------------------------------- */
static int write_head(const lr_choices *c, char *line)
{
    return snprintf(line, LINE, "lorarun products 1, cuBLASLt %" PRId64 ", %s\n", c->version, c->gpu);
}

/* The key's numbers in their order, then the time and the algorithm. */
enum { NUMBERS = 3 + 4 + 4 + 4 + 6 };

static void numbers_of(const lr_choice_key *k, int64_t out[NUMBERS])
{
    int n = 0;
    out[n++] = k->m;
    out[n++] = k->n;
    out[n++] = k->k;
    for (int i = 0; i < 4; i++) {
        out[n++] = k->ld[i];
        out[n++] = k->alignment[i];
        out[n++] = k->dtype[i];
    }
    out[n++] = k->a_transposed;
    out[n++] = k->b_transposed;
    out[n++] = k->biased;
    out[n++] = k->accumulates;
    out[n++] = k->deterministic;
    out[n++] = k->tf32;
}

static void key_of(const int64_t in[NUMBERS], lr_choice_key *k)
{
    int n = 0;
    memset(k, 0, sizeof *k);
    k->m = in[n++];
    k->n = in[n++];
    k->k = in[n++];
    for (int i = 0; i < 4; i++) {
        k->ld[i] = in[n++];
        k->alignment[i] = (uint32_t)in[n++];
        k->dtype[i] = (int32_t)in[n++];
    }
    k->a_transposed = (uint8_t)in[n++];
    k->b_transposed = (uint8_t)in[n++];
    k->biased = (uint8_t)in[n++];
    k->accumulates = (uint8_t)in[n++];
    k->deterministic = (uint8_t)in[n++];
    k->tf32 = (uint8_t)in[n++];
}

static int write_line(const lr_choice *x, char *line)
{
    int64_t numbers[NUMBERS];
    int used = 0;
    numbers_of(&x->key, numbers);
    for (int i = 0; i < NUMBERS; i++)
        used += sprintf(line + used, "%" PRId64 " ", numbers[i]);
    used += sprintf(line + used, "%" PRId64, x->nanoseconds);
    for (int i = 0; i < WORDS; i++)
        used += sprintf(line + used, " %016" PRIx64, x->algorithm.words[i]);
    return used + sprintf(line + used, "\n");
}

static bool read_line(const char *line, lr_choice *x)
{
    int64_t numbers[NUMBERS + 1];
    int used;
    for (int i = 0; i <= NUMBERS; i++, line += used)
        if (sscanf(line, "%" SCNd64 "%n", &numbers[i], &used) != 1)
            return false;
    *x = (lr_choice){.nanoseconds = numbers[NUMBERS]};
    key_of(numbers, &x->key);
    for (int i = 0; i < WORDS; i++, line += used)
        if (sscanf(line, " %" SCNx64 "%n", &x->algorithm.words[i], &used) != 1)
            return false;
    return *line == '\n';
}

/* Add every choice of the text. False: the text is not as this program writes it for this GPU and version, and nothing was
 * added. */
static bool read_text(lr_choices *c, const char *text, int64_t size)
{
    char head[LINE];
    const int head_size = write_head(c, head);
    const char *last = text + size; /* the checksum's line */
    if (size <= head_size || text[size - 1] != '\n' || memcmp(text, head, (size_t)head_size) != 0 ||
        memchr(text, 0, (size_t)size) != NULL)
        return false;
    for (last--; last > text && last[-1] != '\n'; last--)
        ;
    uint32_t crc = 0;
    if (sscanf(last, "crc32c %8" SCNx32 "\n", &crc) != 1 || crc != lr_crc32c(0, text, (size_t)(last - text)))
        return false;
    lr_choice x;
    for (const char *line = text + head_size; line < last; line = strchr(line, '\n') + 1)
        if (!read_line(line, &x))
            return false; /* the checksum is right, so another program wrote it */
    for (const char *line = text + head_size; line < last; line = strchr(line, '\n') + 1)
        if (read_line(line, &x))
            add(c, &x);
    return true;
}

static void read_file(lr_choices *c)
{
    char *text;
    int64_t size;
    lr_stat there;
    if (c->path[0] == 0 || lr_file_stat(c->path, &there) != LR_OK)
        return;
    if (lr_file_read(c->path, &text, &size) != LR_OK) {
        (void)fprintf(stderr, "lorarun: %s: products are chosen again\n", lr_last_error());
        return;
    }
    if (!read_text(c, text, size))
        (void)fprintf(stderr, "lorarun: %s is damaged or another program's: products are chosen again\n", c->path);
    lr_free(text);
}

static int write_file(const lr_choices *c)
{
    const size_t most = (size_t)(c->count + 2) * LINE;
    char *text = lr_alloc(most);
    if (text == NULL)
        return LR_ENOMEM;
    char *end = text + write_head(c, text);
    for (int i = 0; i < LR_CHOICE_SLOTS; i++)
        if (c->slots[i].used)
            end += write_line(&c->slots[i], end);
    const uint32_t crc = lr_crc32c(0, text, (size_t)(end - text));
    end += snprintf(end, LINE, "crc32c %08" PRIx32 "\n", crc);
    const int status = lr_file_write(c->path, text, end - text);
    lr_free(text);
    return status;
}

/* ---- the file -------------------------------------------------------------------------------------------------------- */
/* c->path becomes folder/name; the name has the letters and digits of the GPU's name, and the version. */
static bool name_file(lr_choices *c, const char *folder)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int used;
    if (folder != NULL)
        used = snprintf(c->path, sizeof c->path, "%s", folder);
    else if (cache != NULL && *cache != 0)
        used = snprintf(c->path, sizeof c->path, "%s/lorarun", cache);
    else if (home != NULL && *home != 0)
        used = snprintf(c->path, sizeof c->path, "%s/.cache/lorarun", home);
    else
        return false;
    if (used < 0 || (size_t)used + sizeof c->gpu + 32 >= sizeof c->path || lr_dir_make(c->path) != LR_OK)
        return false;
    char *name = c->path + used;
    const int more = snprintf(name, sizeof c->path - (size_t)used, "/products-%s-%" PRId64, c->gpu, c->version);
    for (char *p = name + 1; *p != 0; p++)
        if (!((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') || *p == '-'))
            *p = '_';
    snprintf(name + more, sizeof c->path - (size_t)(used + more), ".txt");
    return true;
}

/* Take the lock: no other process writes while it is held. -1: it could not be taken. */
static int lock(const lr_choices *c)
{
    char path[sizeof c->path + 8];
    snprintf(path, sizeof path, "%s.lock", c->path);
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    for (int i = 0; fd >= 0 && i < LOCK_ATTEMPTS; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return fd;
        if (errno != EWOULDBLOCK && errno != EINTR)
            break;
        const struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
        nanosleep(&pause, NULL);
    }
    if (fd >= 0)
        close(fd);
    return -1;
}

static void unlock(int fd)
{
    close(fd);
}

void lr_choices_open(lr_choices *c, const char *folder, const char *gpu, int64_t version)
{
    memset(c, 0, sizeof *c);
    snprintf(c->gpu, sizeof c->gpu, "%s", gpu);
    for (char *p = c->gpu; *p != 0; p++)
        if ((unsigned char)*p < ' ')
            *p = ' ';
    c->version = version;
    if (!name_file(c, folder))
        c->path[0] = 0;
    const int fd = c->path[0] != 0 ? lock(c) : -1;
    if (c->path[0] != 0)
        read_file(c); /* even if it cannot be written */
    if (fd >= 0)
        unlock(fd);
    else
        c->path[0] = 0; /* nothing can be kept */
}

/* Keep the choice in the file, unless another rank has kept one for its key, which then counts. False: it could not be kept, and
 * was not added. */
static bool keep(lr_choices *c, const lr_choice *choice)
{
    const int fd = c->path[0] != 0 ? lock(c) : -1;
    bool kept = fd >= 0;
    if (kept) {
        read_file(c);
        lr_choice *slot = slot_of(c, &choice->key);
        if (!slot->used) {
            add(c, choice);
            kept = write_file(c) == LR_OK;
            if (!kept) { /* no other key was added after it, so none is searched for past its slot */
                slot->used = false;
                c->count--;
            }
        }
        unlock(fd);
    }
    if (!kept)
        c->path[0] = 0; /* the disk is full, or the folder is gone: not tried again for every product */
    return kept;
}

/* ---- choosing -------------------------------------------------------------------------------------------------------- */
enum { ROUNDS = 3, MOST_RUNS = 10 };
/* Seconds that a measurement should take: the clock's resolution is about one microsecond. */
static const double LONG_ENOUGH = 100e-6;
static const double NEAR = 1.25; /* candidates whose first time is within this of the best are timed again */
/* A candidate replaces one that the library prefers if it takes less than this part of its time. */
static const double BETTER = 0.99;

static int runs_for(double seconds)
{
    const double runs = seconds > 0.0 ? LONG_ENOUGH / seconds : MOST_RUNS;
    return runs <= 1.0 ? 1 : runs >= MOST_RUNS ? MOST_RUNS : (int)runs;
}

/* Seconds of one product, the least that was measured; below 0: the algorithm cannot be used. */
static double timed(const lr_choice_library *l, const lr_algorithm *a, int runs, double least)
{
    double seconds;
    if (l->seconds(l->product, a, runs, &seconds) != LR_OK)
        return -1.0;
    seconds /= runs;
    return least > 0.0 && least < seconds ? least : seconds;
}

/* The index of the fastest candidate, with its time in *best; -1: none could be timed. Each is run once before it is timed,
 * since the first run loads it. They are timed in turns, so that a disturbance of the machine affects all. */
static int fastest(const lr_choice_library *l, const lr_algorithm *candidates, int count, double *best)
{
    double least[LR_CHOICE_CANDIDATES], first = -1.0;
    for (int i = 0; i < count; i++) {
        least[i] = timed(l, &candidates[i], 1, 0.0);
        if (least[i] >= 0.0)
            least[i] = timed(l, &candidates[i], 1, 0.0);
        if (least[i] >= 0.0 && (first < 0.0 || least[i] < first))
            first = least[i];
    }
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < count; i++)
            if (least[i] >= 0.0 && least[i] <= NEAR * first)
                least[i] = timed(l, &candidates[i], runs_for(least[i]), least[i]);
    int chosen = -1;
    for (int i = 0; i < count; i++)
        if (least[i] >= 0.0 && (chosen < 0 || least[i] < BETTER * least[chosen]))
            chosen = i;
    *best = chosen >= 0 ? least[chosen] : 0.0;
    return chosen;
}

bool lr_chosen(lr_choices *c, const lr_choice_key *key, lr_algorithm *out)
{
    const lr_choice *known = slot_of(c, key);
    if (known->used)
        *out = known->algorithm;
    return known->used;
}

int lr_choose(lr_choices *c, const lr_choice_key *key, const lr_choice_library *library, lr_algorithm *out)
{
    if (lr_chosen(c, key, out))
        return LR_OK;
    lr_algorithm candidates[LR_CHOICE_CANDIDATES];
    int count = 0;
    const int status = library->candidates(library->product, candidates, &count);
    if (status != LR_OK)
        return status;
    if (count == 0)
        return lr_fail(LR_EUNSUPPORTED,
                       "the library has no algorithm for a product of %" PRId64 " x %" PRId64 " x %" PRId64, key->m,
                       key->n, key->k);
    const bool full = c->count >= MOST;
    static bool told;
    if (full && !told) {
        (void)fprintf(
            stderr,
            "lorarun: %d products have been chosen, which is as many as are kept: others are chosen again each "
            "time, which is slow%s%s\n",
            c->count, c->path[0] != 0 ? "; delete " : "", c->path);
        told = true;
    }
    const lr_choice plain = {.key = *key, .algorithm = candidates[0]};
    lr_choice choice = plain;
    bool failed = false;
    if (library->seconds != NULL && count > 1 && !full && (c->path[0] != 0 || !key->deterministic)) {
        double seconds;
        const int i = fastest(library, candidates, count, &seconds);
        failed = i < 0;
        if (!failed) {
            choice.algorithm = candidates[i];
            choice.nanoseconds = (int64_t)(1e9 * seconds + 0.5);
        }
    }
    const bool worth_keeping = !full && !failed && (choice.nanoseconds > 0 || key->deterministic);
    if (!worth_keeping || !keep(c, &choice)) {
        choice = key->deterministic ? plain : choice; /* as the next run will choose */
        add(c, &choice);
    }
    if (!lr_chosen(c, key, out))
        *out = choice.algorithm; /* the table is full */
    return LR_OK;
}
