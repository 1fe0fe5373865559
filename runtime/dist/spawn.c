/* spawn.c: starting a rank, which is this program once more, with the same arguments.
 *
 * posix_spawn cannot do two things that matter: make the child lead a process group, and have it die with the launcher.
 *
 * Invariants
 *   - Between fork and exec only async-signal-safe calls are made, with all signals blocked.
 *   - Descriptors of the launcher are FIRST_FD and above, so that setting up 0 to 4 for the rank overwrites none. */
#define _GNU_SOURCE
#include "dist/spawn.h"
#include "core/limits.h"
#include "io/file.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FIRST_FD = 10 };

/* ---- descriptors ----------------------------------------------------------------------------------------------------- */
int lr_fd_moved_up(int fd)
{
    if (fd < 0)
        return -1;
    const int high = fcntl(fd, F_DUPFD_CLOEXEC, FIRST_FD);
    const int saved = errno == EINVAL ? EMFILE : errno; /* EINVAL: the limit of files is below FIRST_FD */
    (void)close(fd);
    errno = saved;
    return high;
}

void lr_fd_close(int *fd)
{
    const int saved = errno;
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
    errno = saved;
}

bool lr_fd_pipe(int ends[2], int flags)
{
    ends[0] = ends[1] = -1;
    if (pipe2(ends, O_CLOEXEC | flags) != 0)
        return false;
    ends[0] = lr_fd_moved_up(ends[0]);
    ends[1] = lr_fd_moved_up(ends[1]);
    if (ends[0] >= 0 && ends[1] >= 0)
        return true;
    lr_fd_close(&ends[0]);
    lr_fd_close(&ends[1]);
    return false;
}

/* A file without a name with what a rank reads as its standard input. */
static int input_file(const char *input, int64_t size)
{
    int fd = lr_fd_moved_up(memfd_create("lorarun-input", MFD_CLOEXEC));
    for (int64_t done = 0; fd >= 0 && done < size;) {
        const ssize_t n = lr_fd_write(fd, input + done, (size_t)(size - done));
        if (n > 0)
            done += n;
        else
            lr_fd_close(&fd);
    }
    if (fd >= 0)
        (void)lseek(fd, 0, SEEK_SET);
    return fd;
}

/* ---- the environment --------------------------------------------------------------------------------------------------- */
static bool same_name(const char *variable, const char *setting)
{
    return strncmp(variable, setting, (size_t)(strchrnul(setting, '=') - setting) + 1) == 0;
}

/* The launcher's environment, in which settings and one_more replace variables of the same names. lr_free the array; the texts
 * in it are borrowed. */
static const char **environment_with(const char *const *settings, const char *one_more)
{
    size_t own = 0, added = 0, used = 0;
    while (environ[own] != NULL)
        own++;
    while (settings[added] != NULL)
        added++;
    const char **all = lr_alloc((own + added + 2) * sizeof *all);
    if (all == NULL)
        return NULL;
    for (size_t i = 0; i < own; i++) {
        bool replaced = same_name(environ[i], one_more);
        for (size_t k = 0; k < added && !replaced; k++)
            replaced = same_name(environ[i], settings[k]);
        if (!replaced)
            all[used++] = environ[i];
    }
    for (size_t k = 0; k < added; k++)
        all[used++] = settings[k];
    all[used++] = one_more;
    all[used] = NULL;
    return all;
}

/* ---- the child --------------------------------------------------------------------------------------------------------- */
typedef struct child {
    const lr_spawn *s;
    const char **environment;
    int input, output, error; /* input: -1: empty */
    pid_t launcher;
    sigset_t mask; /* the launcher's */
} child;

/* In the child: become the rank. Returns only on failure, with errno. */
static void become_rank(const child *c)
{
    if ((!c->s->terminal && setpgid(0, 0) != 0) || prctl(PR_SET_PDEATHSIG, SIGKILL) != 0)
        return;
    if (getppid() != c->launcher) /* the launcher died before the line above */
        _exit(EXIT_FAILURE);
    for (int number = 1; number < NSIG; number++) { /* the launcher's handlers must not run here */
        struct sigaction action;
        if (sigaction(number, NULL, &action) == 0 && action.sa_handler != SIG_IGN)
            (void)signal(number, SIG_DFL);
    }
    (void)signal(SIGPIPE, SIG_DFL);
    (void)signal(SIGUSR1, SIG_IGN);
    const int nowhere = lr_fd_moved_up(open("/dev/null", O_RDWR | O_CLOEXEC));
    if (nowhere < 0 || dup2(c->input >= 0 ? c->input : nowhere, STDIN_FILENO) < 0 || dup2(nowhere, STDOUT_FILENO) < 0 ||
        dup2(c->error, STDERR_FILENO) < 0 || dup2(c->s->pages_fd, LR_RANK_PAGE_FD) < 0 ||
        dup2(c->output, LR_RANK_OUTPUT_FD) < 0)
        return;
    atomic_store(&c->s->page->process, (int)getpid());
    (void)sigprocmask(SIG_SETMASK, &c->mask, NULL);
    (void)execve("/proc/self/exe", (char *const *)c->s->argv, (char *const *)c->environment);
}

/* Fork, and wait until the child has executed the program. Its process id, or -1 with errno. */
static pid_t fork_and_exec(child *c)
{
    int report[2]; /* exec closes it; if exec fails, the child writes errno to it */
    if (!lr_fd_pipe(report, 0))
        return -1;
    c->launcher = getpid();
    sigset_t all;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &c->mask);
    pid_t pid = fork();
    int error = errno;
    if (pid == 0) {
        become_rank(c);
        error = errno;
        (void)!write(report[1], &error, sizeof error);
        _exit(EXIT_FAILURE);
    }
    (void)pthread_sigmask(SIG_SETMASK, &c->mask, NULL);
    lr_fd_close(&report[1]);
    if (pid > 0) {
        if (lr_fd_read(report[0], &error, sizeof error) > 0) {
            (void)waitpid(pid, NULL, 0);
            pid = -1;
        }
    }
    lr_fd_close(&report[0]);
    errno = error;
    return pid;
}

/* Open what the rank reads and writes. The launcher's ends go to reads. false: errno says why. */
static bool open_streams(const lr_spawn *s, child *c, int reads[2])
{
    if (s->terminal) {
        c->input = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, FIRST_FD);
        c->output = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, FIRST_FD);
        c->error = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, FIRST_FD);
        return c->output >= 0 && c->error >= 0; /* if the launcher has no standard input, neither has the rank */
    }
    if (s->input_size > 0 && (c->input = input_file(s->input, s->input_size)) < 0)
        return false;
    int output[2], error[2];
    if (!lr_fd_pipe(output, 0))
        return false;
    reads[0] = output[0];
    c->output = output[1];
    if (!lr_fd_pipe(error, 0))
        return false;
    reads[1] = error[0];
    c->error = error[1];
    return fcntl(reads[0], F_SETFL, O_NONBLOCK) == 0 && fcntl(reads[1], F_SETFL, O_NONBLOCK) == 0;
}

int lr_spawn_rank(lr_spawn *s, pid_t *pid)
{
    char *own_setting = lr_format(LR_RANK_VARIABLE "=%d", s->index);
    child c = {.s = s, .input = -1, .output = -1, .error = -1};
    if (own_setting == NULL || (c.environment = environment_with(s->settings, own_setting)) == NULL) {
        lr_free(own_setting);
        return LR_ENOMEM;
    }
    int reads[2] = {-1, -1};
    const pid_t started = open_streams(s, &c, reads) ? fork_and_exec(&c) : -1;
    char what[48];
    snprintf(what, sizeof what, "rank process %d", s->index);
    const int status = started > 0 ? LR_OK : lr_limits_fail_start(what, errno);
    lr_fd_close(&c.input);
    lr_fd_close(&c.output);
    lr_fd_close(&c.error);
    if (status != LR_OK) {
        lr_fd_close(&reads[0]);
        lr_fd_close(&reads[1]);
    }
    lr_free(c.environment);
    lr_free(own_setting);
    if (status == LR_OK) {
        s->pipes[0] = reads[0];
        s->pipes[1] = reads[1];
        *pid = started;
    }
    return status;
}
