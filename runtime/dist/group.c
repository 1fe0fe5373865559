/* group.c: the processes of a job on one machine, as their launcher holds them.
 *
 * Each rank leads a process group of its own. So Ctrl-C at the terminal reaches only the launcher, which decides what it means,
 * and a SIGKILL to the group reaches everything that the rank has started. The launcher is also the subreaper of its
 * descendants, so that it can wait until orphans are gone, and the kernel kills a rank whose launcher dies (spawn.c).
 *
 * One rank may have the launcher's terminal instead of pipes (for the prompt). It stays in the launcher's process group, because
 * only the foreground group may read from a terminal; Ctrl-C then reaches both.
 *
 * Handlers note signals and ended children in a pipe. One poll() watches that pipe and the output of the ranks. signalfd would
 * need the signals blocked in every thread, and there are threads by the time a recipe calls lr.launch.
 *
 * Invariant: a rank is reaped, which frees its process id, only after its process group was killed. So the id of a group is
 * never that of somebody else's processes. */
#define _GNU_SOURCE
#include "dist/spawn.h"
#include "io/file.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { OUTPUT_BYTES = 1 << 16, LAST_WORDS = 1 << 20, MOST_PROCESSES = 4096 };
static const double GONE_SECONDS = 2; /* killed processes are gone by then, unless they hang in the kernel */

typedef struct process {
    pid_t pid;     /* 0: it does not run */
    pid_t orphans; /* the process group of the rank before, not all of it reaped yet; 0: none */
    int pipes[2];  /* its standard output and error, to read; -1: closed */
    bool terminal; /* it has the launcher's input and output, and no process group of its own */
    bool ended;    /* it is a zombie: the rest of its output comes first, then its end */
    int64_t told;  /* bytes of output since it ended */
} process;

struct lr_group {
    int size, pages_fd;
    process *processes;
    lr_rank_page **pages;
    struct pollfd *polled; /* the signal pipe, then two per process */
    struct termios modes;  /* of the terminal before a rank had it */
    bool has_modes, deaf;  /* deaf: see lr_group_listen */
    int turn;              /* the pipe that is read first next time, so that none is starved */
    char output[OUTPUT_BYTES];
};

/* ---- signals --------------------------------------------------------------------------------------------------------- */
/* The first TOLD of them are events for the caller. Those that were ignored stay ignored. */
static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGTSTP, SIGCHLD, SIGWINCH, SIGPIPE};
enum { TOLD = 6, SIGNALS = LR_COUNT_OF(numbers) };
static struct sigaction before[SIGNALS];
static int signal_pipe[2] = {-1, -1}; /* open while a group exists */

static void note(int number)
{
    const int saved = errno;
    const unsigned char byte = (unsigned char)number;
    (void)!write(signal_pipe[1], &byte, 1); /* a full pipe already holds enough notes */
    errno = saved;
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = note, .sa_flags = SA_RESTART};
    (void)sigfillset(&action.sa_mask);
    for (size_t i = 0; i < SIGNALS; i++) {
        (void)sigaction(numbers[i], NULL, &before[i]);
        if (i < TOLD && before[i].sa_handler == SIG_IGN)
            continue;
        action.sa_handler = numbers[i] == SIGPIPE ? SIG_IGN : note;
        (void)sigaction(numbers[i], &action, NULL);
    }
}

static void release_signals(void)
{
    for (size_t i = 0; i < SIGNALS; i++)
        (void)sigaction(numbers[i], &before[i], NULL);
}

/* ---- the group ------------------------------------------------------------------------------------------------------- */
static void tell_width(lr_group *g)
{
    const int width[2] = {lr_terminal_width(STDOUT_FILENO), lr_terminal_width(STDERR_FILENO)};
    for (int i = 0; i < g->size; i++)
        for (int stream = 0; stream < 2; stream++)
            atomic_store(&g->pages[i]->width[stream], width[stream]);
}

static void release(lr_group *g)
{
    for (int i = 0; g->pages != NULL && i < g->size; i++)
        if (g->pages[i] != NULL)
            (void)munmap(g->pages[i], LR_RANK_PAGE_SIZE);
    lr_fd_close(&g->pages_fd);
    lr_fd_close(&signal_pipe[0]);
    lr_fd_close(&signal_pipe[1]);
    lr_free(g->polled);
    lr_free(g->pages);
    lr_free(g->processes);
    lr_free(g);
}

/* Opens what g needs, once its memory is there. */
static int open_group(lr_group *g)
{
    g->pages_fd = lr_fd_moved_up(memfd_create("lorarun-ranks", MFD_CLOEXEC));
    if (g->pages_fd < 0 || ftruncate(g->pages_fd, (off_t)g->size * LR_RANK_PAGE_SIZE) != 0)
        return lr_fail_errno("cannot make the memory shared with %d ranks", g->size);
    for (int i = 0; i < g->size; i++) {
        void *page = mmap(NULL, LR_RANK_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, g->pages_fd,
                          (off_t)i * LR_RANK_PAGE_SIZE);
        if (page == MAP_FAILED)
            return lr_fail_errno("cannot map the memory shared with process %d", i);
        g->pages[i] = page;
    }
    if (!lr_fd_pipe(signal_pipe, O_NONBLOCK))
        return lr_fail_errno("cannot make the pipe for signals");
    return LR_OK;
}

int lr_group_new(lr_group **out, int processes)
{
    if (processes < 1 || processes > MOST_PROCESSES)
        return lr_fail(LR_EINVAL, "a machine runs 1 to %d ranks, not %d", MOST_PROCESSES, processes);
    if (signal_pipe[0] >= 0)
        return lr_fail(LR_EINVAL, "there is a group of processes already");
    lr_group *g = lr_calloc(1, sizeof *g);
    if (g == NULL)
        return LR_ENOMEM;
    g->size = processes;
    g->pages_fd = -1;
    g->processes = lr_calloc((size_t)processes, sizeof *g->processes);
    g->pages = lr_calloc((size_t)processes, sizeof(lr_rank_page *));
    g->polled = lr_calloc(1 + 2 * (size_t)processes, sizeof *g->polled);
    int status = g->processes != NULL && g->pages != NULL && g->polled != NULL ? open_group(g) : LR_ENOMEM;
    if (status != LR_OK) {
        release(g);
        return status;
    }
    for (int i = 0; i < processes; i++)
        g->processes[i].pipes[0] = g->processes[i].pipes[1] = -1;
    tell_width(g);
    (void)prctl(PR_SET_CHILD_SUBREAPER, 1);
    catch_signals();
    *out = g;
    return LR_OK;
}

static bool is_process(const lr_group *g, int index)
{
    return index >= 0 && index < g->size;
}

int lr_group_spawn(lr_group *g, int index, const char *const *argv, const char *const *settings, const char *input,
                   int64_t size)
{
    if (!is_process(g, index) || g->processes[index].pid != 0)
        return lr_fail(LR_EINVAL, "process %d of %d: there is none, or it runs", index, g->size);
    process *p = &g->processes[index];
    lr_rank_page *page = g->pages[index];
    const bool terminal = size < 0;
    memset(page, 0, sizeof *page);
    tell_width(g);
    atomic_store(&page->terminal, terminal);
    if (terminal)
        g->has_modes = tcgetattr(STDIN_FILENO, &g->modes) == 0;
    lr_spawn s = {argv, settings, input, size, terminal, index, g->pages_fd, page, {-1, -1}};
    pid_t pid;
    const int status = lr_spawn_rank(&s, &pid);
    if (status == LR_OK)
        *p = (process){.pid = pid, .pipes = {s.pipes[0], s.pipes[1]}, .terminal = terminal};
    return status;
}

/* A rank that was killed at its prompt has left the terminal in the mode of line editing. */
static void restore_terminal(lr_group *g, const process *p)
{
    if (p->terminal && g->has_modes)
        (void)tcsetattr(STDIN_FILENO, TCSADRAIN, &g->modes);
}

int lr_group_process(const lr_group *g, int index)
{
    return is_process(g, index) ? (int)g->processes[index].pid : 0;
}

int lr_group_state(const lr_group *g, int index, lr_rank_state *out)
{
    if (!is_process(g, index))
        return lr_fail(LR_EINVAL, "process %d of a group of %d", index, g->size);
    lr_rank_read(g->pages[index], out);
    return LR_OK;
}

int lr_group_signal(lr_group *g, int index, int number)
{
    if (index != -1 && !is_process(g, index))
        return lr_fail(LR_EINVAL, "process %d of a group of %d", index, g->size);
    const bool all_it_started = number == SIGKILL || number == SIGSTOP || number == SIGCONT;
    for (int i = 0; i < g->size; i++) {
        const process *p = &g->processes[i];
        const pid_t pid = all_it_started && !p->terminal ? -p->pid : p->pid;
        if (pid != 0 && (index == -1 || index == i) && kill(pid, number) != 0 && errno != ESRCH)
            return lr_fail_errno("cannot send signal %d to process %ld", number, (long)p->pid);
    }
    return LR_OK;
}

/* ---- events ---------------------------------------------------------------------------------------------------- */
/* Find processes that have ended, and kill what they started while their process group still exists. */
static void look_for_ends(lr_group *g)
{
    for (int i = 0; i < g->size; i++) {
        process *p = &g->processes[i];
        siginfo_t info = {.si_pid = 0};
        if (p->pid == 0 || p->ended || waitid(P_PID, (id_t)p->pid, &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
            info.si_pid != p->pid)
            continue;
        p->ended = true;
        p->told = 0;
        if (!p->terminal)
            (void)kill(-p->pid, SIGKILL);
    }
}

static void reap_orphans(process *p)
{
    pid_t reaped;
    do
        reaped = p->orphans != 0 ? waitpid(-p->orphans, NULL, WNOHANG) : 0;
    while (reaped > 0);
    if (reaped < 0)
        p->orphans = 0;
}

/* Stop the launcher together with its ranks, as the terminal asked, and continue with them. The default action of SIGTSTP does
 * this; it does nothing if there is no shell that could continue the launcher. */
static void stop_and_continue(lr_group *g)
{
    struct sigaction caught;
    (void)lr_group_signal(g, -1, SIGSTOP);
    (void)sigaction(SIGTSTP, NULL, &caught);
    (void)signal(SIGTSTP, SIG_DFL);
    (void)raise(SIGTSTP);
    (void)sigaction(SIGTSTP, &caught, NULL);
    (void)lr_group_signal(g, -1, SIGCONT);
}

/* true: a signal is the event. */
static bool next_signal(lr_group *g, lr_event *out)
{
    unsigned char number;
    while (read(signal_pipe[0], &number, 1) == 1) {
        if (number == SIGCHLD) {
            look_for_ends(g);
        } else if (number == SIGWINCH) {
            tell_width(g);
        } else {
            if (number == SIGTSTP)
                stop_and_continue(g);
            *out = (lr_event){.kind = LR_EVENT_SIGNAL, .status = number == SIGTSTP ? SIGCONT : number};
            return true;
        }
    }
    return false;
}

/* true: output of the process is the event. */
static bool next_output(lr_group *g, int index, int stream, lr_event *out)
{
    process *p = &g->processes[index];
    if (p->pipes[stream] < 0)
        return false;
    const ssize_t n = lr_fd_read(p->pipes[stream], g->output, sizeof g->output);
    if (n > 0) {
        *out = (lr_event){LR_EVENT_OUTPUT, index, stream + 1, 0, g->output, n};
        p->told += n;
        return true;
    }
    if (n == 0 || errno != EAGAIN)
        lr_fd_close(&p->pipes[stream]);
    return false;
}

/* What an ended process has written, then its end. A program that left its process group may go on writing, so there is a limit. */
static void last_words(lr_group *g, int index, lr_event *out)
{
    process *p = &g->processes[index];
    if (p->told < LAST_WORDS && (next_output(g, index, 0, out) || next_output(g, index, 1, out)))
        return;
    lr_fd_close(&p->pipes[0]);
    lr_fd_close(&p->pipes[1]);
    siginfo_t info = {.si_pid = 0};
    (void)waitid(P_PID, (id_t)p->pid, &info, WEXITED);
    *out = (lr_event){.kind = LR_EVENT_EXIT,
                      .process = index,
                      .status = info.si_code == CLD_EXITED ? info.si_status : -info.si_status};
    restore_terminal(g, p);
    *p = (process){.orphans = p->terminal ? 0 : p->pid, .pipes = {-1, -1}};
    reap_orphans(p);
}

/* true: output of a process, or its end, is the event. polled: g->polled has the results of poll. */
static bool next_of_processes(lr_group *g, bool polled, lr_event *out)
{
    for (int i = 0; i < g->size; i++)
        if (g->processes[i].ended) {
            last_words(g, i, out);
            return true;
        }
    for (int k = 0; polled && k < 2 * g->size; k++) {
        const int pipe = (g->turn + k) % (2 * g->size);
        if (g->polled[1 + pipe].revents != 0 && next_output(g, pipe / 2, pipe % 2, out)) {
            g->turn = pipe + 1;
            return true;
        }
    }
    return false;
}

void lr_group_listen(lr_group *g, int on)
{
    g->deaf = on == 0;
}

int lr_group_wait(lr_group *g, double timeout, lr_event *out)
{
    const double until = lr_time() + (timeout > 0 ? timeout : 0);
    bool polled = false;
    for (;;) {
        if (next_signal(g, out) || next_of_processes(g, polled, out))
            return LR_OK;
        const double left = until - lr_time();
        if (polled && left <= 0)
            break;
        g->polled[0] = (struct pollfd){.fd = signal_pipe[0], .events = POLLIN};
        for (int i = 0; i < 2 * g->size; i++)
            g->polled[1 + i] = (struct pollfd){.fd = g->deaf ? -1 : g->processes[i / 2].pipes[i % 2], .events = POLLIN};
        const struct timespec limit = {(time_t)left, (long)((left - (double)(time_t)left) * 1e9)};
        const struct timespec none = {0, 0};
        polled = true;
        if (ppoll(g->polled, 1 + 2 * (nfds_t)g->size, left > 0 ? &limit : &none, NULL) < 0 && errno != EINTR)
            return lr_fail_errno("cannot wait for the ranks");
    }
    look_for_ends(g); /* for a note that did not fit into the pipe: it waited for one timeout */
    *out = (lr_event){.kind = LR_EVENT_NONE};
    return LR_OK;
}

void lr_group_free(lr_group *g)
{
    if (g == NULL)
        return;
    (void)lr_group_signal(g, -1, SIGKILL);
    const double until = lr_time() + GONE_SECONDS;
    bool left = true;
    while (left && lr_time() < until) {
        left = false;
        look_for_ends(g);
        for (int i = 0; i < g->size; i++) {
            process *p = &g->processes[i];
            if (p->ended) {
                (void)waitpid(p->pid, NULL, 0);
                restore_terminal(g, p);
                lr_fd_close(&p->pipes[0]);
                lr_fd_close(&p->pipes[1]);
                *p = (process){.orphans = p->terminal ? 0 : p->pid, .pipes = {-1, -1}};
            }
            reap_orphans(p);
            left = left || p->pid != 0 || p->orphans != 0;
        }
        const struct timespec moment = {0, 5000000};
        if (left)
            (void)nanosleep(&moment, NULL);
    }
    for (int i = 0; i < g->size; i++) {
        lr_fd_close(&g->processes[i].pipes[0]);
        lr_fd_close(&g->processes[i].pipes[1]);
    }
    release_signals();
    (void)prctl(PR_SET_CHILD_SUBREAPER, 0);
    release(g);
}
