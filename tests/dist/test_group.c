/* test_group.c: starting, hearing, signalling and ending the ranks of a machine. The ranks are this program itself, which then
 * plays the part that the variable PART names. */
#define _GNU_SOURCE
#include "lr_test.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PATIENCE = 60 };

/* ---- the parts that ranks play ----------------------------------------------------------------------------------------- */
static void say(int fd, const char *text)
{
    (void)!write(fd, text, strlen(text));
}

static void play(const char *part)
{
    char word[64];
    if (strcmp(part, "speak") == 0) {
        say(1, "never heard");
        lr_rank_show();
        say(1, "out");
        say(2, "err");
        _exit(7);
    } else if (strcmp(part, "echo") == 0) {
        lr_rank_show();
        const ssize_t n = read(0, word, sizeof word);
        (void)!write(1, word, n > 0 ? (size_t)n : 0);
        _exit(n > 0 ? 0 : 3);
    } else if (strcmp(part, "much") == 0) {
        lr_rank_show();
        for (int i = 0; i < 20000; i++)
            say(1, "0123456789012345678901234567890123456789012345678\n");
        _exit(0);
    } else if (strcmp(part, "report") == 0) {
        lr_rank_report(12, 100, "training");
        lr_rank_waits("all_reduce");
        lr_rank_waits(NULL);
        lr_rank_waits("barrier");
        lr_rank_failed("it broke", 1);
        lr_rank_failed("later", 0);
        say(2, "told");
        (void)pause();
    } else if (strcmp(part, "offspring") ==
               0) { /* a child that ignores all but SIGKILL, and shows when the rank ends */
        const pid_t child = fork();
        if (child == 0) {
            (void)signal(SIGTERM, SIG_IGN);
            for (;;)
                (void)pause();
        }
        (void)snprintf(word, sizeof word, "%ld", (long)child);
        say(2, word);
        _exit(0);
    } else if (strcmp(part, "runaway") ==
               0) {  /* a child outside the process group that keeps writing to the rank's pipe */
        int left[2]; /* closed once the child has left the group; before, it would be killed with it */
        char none;
        if (pipe(left) != 0)
            _exit(1);
        const pid_t child = fork();
        if (child == 0) {
            (void)setsid();
            (void)close(left[0]);
            (void)close(left[1]);
            (void)signal(SIGPIPE, SIG_DFL);
            (void)alarm(PATIENCE);
            for (;;)
                say(2, "chatter ");
        }
        (void)close(left[1]);
        (void)!read(left[0], &none, 1);
        _exit(5);
    } else if (strcmp(part, "stubborn") == 0) {
        (void)signal(SIGTERM, SIG_IGN);
        say(2, "ready");
        for (;;)
            (void)pause();
    } else if (strcmp(part, "unprepared") == 0) { /* a rank that catches no signals */
        say(2, "ready");
        for (;;)
            (void)pause();
    } else if (strcmp(part, "widths") == 0) {
        lr_rank_show();
        (void)snprintf(word, sizeof word, "%d %d %d", lr_terminal_width(0), lr_terminal_width(1), lr_terminal_width(2));
        say(1, word);
        _exit(0);
    } else if (strcmp(part, "heir") ==
               0) { /* a program that a rank starts is no rank, although its environment says so */
        lr_rank_show();
        if (fork() == 0) {
            (void)setenv("PART", "is-rank", 1);
            (void)execl("/proc/self/exe", "test_group", (char *)NULL);
            _exit(120);
        }
        (void)wait(NULL);
        _exit(0);
    } else if (strcmp(part, "is-rank") == 0) {
        say(2, lr_rank_launched() ? "rank" : "no rank");
        _exit(0);
    } else if (strcmp(part, "launcher") == 0) { /* a launcher that is killed: see a_rank_dies_with_its_launcher */
        lr_group *g;
        lr_event e;
        const char *const argv[] = {"test_group", NULL}, *const settings[] = {"PART=stubborn", NULL};
        if (lr_group_new(&g, 1) != LR_OK || lr_group_spawn(g, 0, argv, settings, NULL, 0) != LR_OK)
            _exit(121);
        if (lr_group_wait(g, PATIENCE, &e) != LR_OK || e.kind != LR_EVENT_OUTPUT)
            _exit(122);
        printf("%d\n", lr_group_process(g, 0));
        (void)fflush(stdout);
        for (;;)
            (void)pause();
    }
    _exit(123);
}

__attribute__((constructor(101))) static void play_a_part(void)
{
    const char *part = getenv("PART");
    if (part != NULL)
        play(part);
}

/* ---- the tests --------------------------------------------------------------------------------------------------------- */
static lr_group *group; /* of the test that runs */

static void start(int index, const char *part, const char *input)
{
    static const char *const argv[] = {"test_group", NULL};
    char setting[64];
    (void)snprintf(setting, sizeof setting, "PART=%s", part);
    const char *const settings[] = {setting, NULL};
    CHECK_INT(lr_group_spawn(group, index, argv, settings, input, input ? (int64_t)strlen(input) : 0), LR_OK);
}

static void begin(int processes)
{
    group = NULL;
    CHECK_INT(lr_group_new(&group, processes), LR_OK);
}

static void end(void)
{
    lr_group_free(group);
    group = NULL;
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD); /* no child is left, not even a zombie */
}

static lr_event next(void)
{
    lr_event e;
    CHECK_INT(lr_group_wait(group, PATIENCE, &e), LR_OK);
    return e;
}

/* Wait until the process has ended: its status. `heard` gets what it wrote to a stream. */
static char heard[2][2 << 20];
static size_t heard_size[2];

static int outcome(int index)
{
    memset(heard_size, 0, sizeof heard_size);
    for (;;) {
        const lr_event e = next();
        CHECK(e.kind == LR_EVENT_OUTPUT || e.kind == LR_EVENT_EXIT);
        CHECK_INT(e.process, index);
        if (e.kind == LR_EVENT_EXIT)
            return e.status;
        const int s = e.stream - 1;
        CHECK(heard_size[s] + (size_t)e.size < sizeof heard[s]);
        memcpy(heard[s] + heard_size[s], e.data, (size_t)e.size);
        heard_size[s] += (size_t)e.size;
        heard[s][heard_size[s]] = 0;
    }
}

static void hear(const char *text)
{
    const lr_event e = next();
    CHECK_INT(e.kind, LR_EVENT_OUTPUT);
    CHECK(e.size == (int64_t)strlen(text) && memcmp(e.data, text, strlen(text)) == 0);
}

TEST(output_and_end_are_events)
{
    begin(1);
    start(0, "speak", NULL);
    CHECK(lr_group_process(group, 0) > 0);
    CHECK_INT(outcome(0), 7);
    CHECK_STR(heard[0], "out");
    CHECK_STR(heard[1], "err");
    CHECK_INT(lr_group_process(group, 0), 0);
    start(0, "speak", NULL); /* the place of an ended process is free again */
    CHECK_INT(outcome(0), 7);
    end();
}

TEST(reads_what_it_is_given)
{
    begin(1);
    start(0, "echo", "a line\n");
    CHECK_INT(outcome(0), 0);
    CHECK_STR(heard[0], "a line\n");
    start(0, "echo", NULL);
    CHECK_INT(outcome(0), 3);
    end();
}

TEST(no_output_is_lost_before_the_end)
{
    begin(1);
    start(0, "much", NULL);
    CHECK_INT(outcome(0), 0);
    CHECK_INT(heard_size[0], 20000 * 50);
    end();
}

TEST(no_rank_starves_the_others)
{
    begin(3);
    start(0, "runaway", NULL);
    start(1, "much", NULL);
    start(2, "speak", NULL);
    int ended = 0, statuses[3] = {-1, -1, -1};
    while (ended < 3) {
        const lr_event e = next();
        if (e.kind == LR_EVENT_EXIT) {
            statuses[e.process] = e.status;
            ended++;
        }
    }
    CHECK(statuses[0] == 5 && statuses[1] == 0 && statuses[2] == 7);
    lr_group_free(group); /* the runaway left its process group; closing its pipe ends it */
    CHECK(waitpid(-1, NULL, 0) > 0);
}

TEST(the_state_of_a_rank_is_seen)
{
    begin(2);
    start(1, "report", NULL);
    hear("told");
    lr_rank_state s;
    CHECK_INT(lr_group_state(group, 1, &s), LR_OK);
    CHECK(s.step == 12 && s.total == 100 && s.collectives == 1 && s.consequence == 1);
    CHECK(s.waiting >= 0 && s.waiting < PATIENCE && s.failed >= 0 && s.failed < PATIENCE);
    CHECK_STR(s.phase, "training");
    CHECK_STR(s.collective, "barrier");
    CHECK_STR(s.failure, "it broke");
    CHECK_INT(lr_group_state(group, 0, &s), LR_OK); /* nothing reported yet */
    CHECK(s.step == 0 && s.waiting < 0 && s.failed < 0 && s.failure[0] == 0);
    CHECK_INT(lr_group_signal(group, 1, SIGKILL), LR_OK);
    CHECK_INT(outcome(1), -SIGKILL);
    end();
}

TEST(reporting_without_a_launcher_does_nothing)
{
    CHECK_INT(lr_rank_launched(), 0);
    lr_rank_report(1, 2, "alone");
    lr_rank_waits("barrier");
    lr_rank_failed("nobody hears", 0);
    CHECK_INT(lr_rank_show(), LR_OK);
}

TEST(what_a_rank_started_ends_with_it)
{
    begin(1);
    start(0, "offspring", NULL);
    CHECK_INT(outcome(0), 0);
    const pid_t child = (pid_t)atol(heard[1]);
    CHECK(child > 1);
    lr_group_free(group);
    group = NULL;
    CHECK(kill(child, 0) != 0 && errno == ESRCH);
}

TEST(stopped_and_stubborn_ranks_are_killed)
{
    begin(2);
    start(0, "stubborn", NULL);
    hear("ready");
    start(1, "stubborn", NULL);
    hear("ready");
    CHECK_INT(lr_group_signal(group, -1, SIGTERM), LR_OK);
    CHECK_INT(lr_group_signal(group, 1, SIGSTOP), LR_OK);
    const pid_t pids[2] = {lr_group_process(group, 0), lr_group_process(group, 1)};
    end();
    CHECK(kill(pids[0], 0) != 0 && kill(pids[1], 0) != 0);
}

TEST(the_save_signal_does_not_end_a_rank_but_a_stop_signal_does)
{
    begin(1);
    start(0, "unprepared", NULL);
    hear("ready");
    CHECK_INT(lr_group_signal(group, 0, SIGUSR1), LR_OK);
    CHECK_INT(lr_group_signal(group, 0, SIGINT), LR_OK);
    CHECK_INT(outcome(0), -SIGINT);
    end();
}

TEST(the_launchers_signals_are_events)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1};
    void (*const before)(int) = signal(SIGINT, SIG_DFL);
    begin(1);
    for (size_t i = 0; i < LR_COUNT_OF(numbers); i++) {
        CHECK(raise(numbers[i]) == 0);
        const lr_event e = next();
        CHECK_INT(e.kind, LR_EVENT_SIGNAL);
        CHECK_INT(e.status, numbers[i]);
    }
    end();
    CHECK(signal(SIGINT, SIG_IGN) == SIG_DFL);
    begin(1);
    CHECK(raise(SIGINT) == 0); /* it was ignored before, so it still is */
    lr_event e;
    CHECK_INT(lr_group_wait(group, 0, &e), LR_OK);
    CHECK_INT(e.kind, LR_EVENT_NONE);
    end();
    (void)signal(SIGINT, before);
}

TEST(waiting_ends_with_its_timeout)
{
    begin(1);
    lr_event e;
    CHECK_INT(lr_group_wait(group, 0.01, &e), LR_OK);
    CHECK_INT(e.kind, LR_EVENT_NONE);
    CHECK_INT(lr_group_wait(group, -1, &e), LR_OK);
    CHECK_INT(e.kind, LR_EVENT_NONE);
    end();
}

TEST(widths_are_the_launchers)
{
    const int terminal = posix_openpt(O_RDWR | O_NOCTTY), saved = dup(STDERR_FILENO);
    CHECK(terminal >= 0 && grantpt(terminal) == 0 && unlockpt(terminal) == 0 && saved >= 0);
    const int tty = open(ptsname(terminal), O_RDWR | O_NOCTTY);
    const struct winsize size = {.ws_col = 77, .ws_row = 20};
    CHECK(tty >= 0 && ioctl(terminal, TIOCSWINSZ, &size) == 0);
    begin(1);
    CHECK(dup2(tty, STDERR_FILENO) >= 0);
    start(0, "widths", NULL);
    CHECK(dup2(saved, STDERR_FILENO) >= 0);
    CHECK_INT(outcome(0), 0);
    char expected[64];
    (void)snprintf(expected, sizeof expected, "0 %d 77", lr_terminal_width(STDOUT_FILENO));
    CHECK_STR(heard[0], expected);
    end();
    (void)close(saved);
    (void)close(tty);
    (void)close(terminal);
}

TEST(a_ranks_own_programs_are_no_ranks)
{
    begin(1);
    start(0, "heir", NULL);
    CHECK_INT(outcome(0), 0);
    CHECK_STR(heard[1], "no rank");
    end();
}

TEST(a_rank_dies_with_its_launcher)
{
    int out[2];
    CHECK(pipe(out) == 0);
    const pid_t launcher = fork();
    CHECK(launcher >= 0);
    if (launcher == 0) {
        (void)dup2(out[1], STDOUT_FILENO);
        (void)setenv("PART", "launcher", 1);
        (void)execl("/proc/self/exe", "test_group", (char *)NULL);
        _exit(120);
    }
    (void)close(out[1]);
    char line[64] = "";
    CHECK(read(out[0], line, sizeof line - 1) > 0);
    const pid_t rank = (pid_t)atol(line);
    CHECK(rank > 1 && kill(rank, 0) == 0);
    CHECK(kill(launcher, SIGKILL) == 0 && waitpid(launcher, NULL, 0) == launcher);
    for (int i = 0; i < PATIENCE * 100 && kill(rank, 0) == 0; i++)
        (void)usleep(10000);
    CHECK(kill(rank, 0) != 0);
    (void)close(out[0]);
}

TEST(mistakes_are_errors)
{
    lr_group *g = NULL;
    CHECK_INT(lr_group_new(&g, 0), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "not 0");
    begin(2);
    CHECK_INT(lr_group_new(&g, 1), LR_EINVAL);
    const char *const argv[] = {"test_group", NULL}, *const settings[] = {NULL};
    CHECK_INT(lr_group_spawn(group, 2, argv, settings, NULL, 0), LR_EINVAL);
    CHECK_INT(lr_group_signal(group, 2, SIGTERM), LR_EINVAL);
    lr_rank_state s;
    CHECK_INT(lr_group_state(group, -1, &s), LR_EINVAL);
    CHECK_INT(lr_group_process(group, 5), 0);
    end();
    lr_group_free(NULL);
}

TEST(every_allocation_may_fail)
{
    int failures = 0;
    for (int after = 0;; after++) {
        lr_memory_fail(after, 1);
        group = NULL;
        int status = lr_group_new(&group, 2);
        if (status == LR_OK) {
            const char *const argv[] = {"test_group", NULL}, *const settings[] = {"PART=speak", NULL};
            status = lr_group_spawn(group, 0, argv, settings, "text", 4);
        }
        lr_memory_fail(-1, 0);
        lr_group_free(group);
        if (status == LR_OK)
            break;
        CHECK_INT(status, LR_ENOMEM);
        failures++;
    }
    CHECK(failures >= 5);
}

TEST_MAIN()
