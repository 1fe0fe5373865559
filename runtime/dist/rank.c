/* rank.c: what a rank tells the launcher that started it, through a page of memory that both share.
 *
 * Writing there costs nothing, never blocks and needs no connection, so the launcher knows as much about a rank that hangs or
 * was stopped as about one that runs. A process that no launcher started has no page, and these functions do nothing.
 *
 * Invariant: the page is looked for once, and written by the thread that trains. */
#define _GNU_SOURCE
#include "dist/rank.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static lr_rank_page *own_page; /* NULL: no launcher started this process */
static pthread_once_t looked = PTHREAD_ONCE_INIT;

static void look_for_page(void)
{
    const char *text = getenv(LR_RANK_VARIABLE);
    char *end = NULL;
    const long index = text != NULL ? strtol(text, &end, 10) : -1;
    struct stat st;
    if (index < 0 || end == text || *end != 0 || fstat(LR_RANK_PAGE_FD, &st) != 0 || !S_ISREG(st.st_mode) ||
        st.st_size / LR_RANK_PAGE_SIZE <= index)
        return;
    lr_rank_page *page = mmap(NULL, LR_RANK_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, LR_RANK_PAGE_FD,
                              (off_t)index * LR_RANK_PAGE_SIZE);
    if (page == MAP_FAILED)
        return;
    if (atomic_load(&page->process) != (int)getpid()) {
        (void)munmap(page, LR_RANK_PAGE_SIZE);
        return;
    }
    (void)close(LR_RANK_PAGE_FD);
    (void)fcntl(LR_RANK_OUTPUT_FD, F_SETFD, FD_CLOEXEC); /* programs that the rank starts must not get these */
    own_page = page;
}

static lr_rank_page *page_of_this_rank(void)
{
    (void)pthread_once(&looked, look_for_page);
    return own_page;
}

int lr_rank_launched(void)
{
    return page_of_this_rank() != NULL;
}

int lr_rank_mute(void)
{
    const int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (nowhere < 0)
        return lr_fail_errno("cannot open /dev/null");
    const int status = dup2(nowhere, STDOUT_FILENO) >= 0 ? LR_OK : lr_fail_errno("cannot mute the rank");
    (void)close(nowhere);
    return status;
}

int lr_rank_show(void)
{
    static bool shown;
    if (page_of_this_rank() == NULL || shown)
        return LR_OK;
    if (dup2(LR_RANK_OUTPUT_FD, STDOUT_FILENO) < 0)
        return lr_fail_errno("cannot show the rank's output");
    (void)close(LR_RANK_OUTPUT_FD);
    shown = true;
    return LR_OK;
}

int lr_rank_terminal_width(int fd)
{
    lr_rank_page *page = page_of_this_rank();
    if (page == NULL || atomic_load(&page->terminal))
        return -1;
    return fd == STDOUT_FILENO || fd == STDERR_FILENO ? atomic_load(&page->width[fd == STDERR_FILENO]) : 0;
}

/* ---- telling --------------------------------------------------------------------------------------------------------- */
static lr_rank_state *begin_writing(void)
{
    lr_rank_page *page = page_of_this_rank();
    if (page == NULL)
        return NULL;
    (void)atomic_fetch_add_explicit(&page->version, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    return &page->state;
}

static void end_writing(void)
{
    (void)atomic_fetch_add_explicit(&own_page->version, 1, memory_order_release);
}

static void put_text(char *to, size_t cap, const char *text)
{
    memset(to, 0, cap);
    memcpy(to, text, strnlen(text, cap - 1));
}

void lr_rank_report(int64_t step, int64_t total, const char *phase)
{
    lr_rank_state *state = begin_writing();
    if (state == NULL)
        return;
    state->step = step;
    state->total = total;
    put_text(state->phase, sizeof state->phase, phase);
    end_writing();
}

void lr_rank_waits(const char *collective)
{
    lr_rank_state *state = begin_writing();
    if (state == NULL)
        return;
    if (state->waiting > 0)
        state->collectives++;
    state->waiting = collective != NULL ? lr_time() : 0;
    if (collective != NULL)
        put_text(state->collective, sizeof state->collective, collective);
    end_writing();
}

void lr_rank_failed(const char *why, int consequence)
{
    lr_rank_state *state = begin_writing();
    if (state == NULL)
        return;
    if (!(state->failed > 0)) {
        state->failed = lr_time();
        state->consequence = consequence != 0;
        put_text(state->failure, sizeof state->failure, why);
    }
    end_writing();
}

/* ---- the launcher's side ---------------------------------------------------------------------------------------------- */
void lr_rank_read(lr_rank_page *page, lr_rank_state *out)
{
    for (int attempt = 0; attempt < 1000; attempt++) {
        const unsigned before = atomic_load_explicit(&page->version, memory_order_acquire);
        *out = page->state;
        atomic_thread_fence(memory_order_acquire);
        if (before % 2 == 0 && atomic_load_explicit(&page->version, memory_order_relaxed) == before)
            break;
    }
    out->phase[sizeof out->phase - 1] = out->collective[sizeof out->collective - 1] = 0;
    out->failure[sizeof out->failure - 1] = 0;
    const double now = lr_time();
    out->waiting = out->waiting > 0 ? now - out->waiting : -1;
    out->failed = out->failed > 0 ? now - out->failed : -1;
}
