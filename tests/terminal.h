/* terminal.h: a program on a new terminal of 80 columns, for tests that see and type what a person does. */
#ifndef LR_TEST_TERMINAL_H
#define LR_TEST_TERMINAL_H

#include "lr_test.h"
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static struct session {
    pid_t pid; /* 0: no program runs */
    int terminal;
    char folder[64];
    char seen[1 << 16]; /* what was printed and no test has waited for yet */
    size_t size;
} session;

/* An empty folder for the session, removed by session_end. */
static inline void session_folder(void)
{
    (void)snprintf(session.folder, sizeof session.folder, "/tmp/lorarun-session-XXXXXX");
    CHECK(mkdtemp(session.folder) != NULL);
}

static inline void session_file(const char *name, const char *text)
{
    char path[128];
    (void)snprintf(path, sizeof path, "%s/%s", session.folder, name);
    FILE *f = fopen(path, "w");
    CHECK(f != NULL);
    CHECK(fputs(text, f) >= 0 && fclose(f) == 0);
}

/* Forks onto the terminal, as forkpty does. The child returns with 0, in the session's folder, and is to run $LORARUN_PROGRAM. */
static inline pid_t session_fork(const char *term)
{
    CHECK(getenv("LORARUN_PROGRAM") != NULL);
    session.size = 0;
    struct winsize size = {.ws_col = 80, .ws_row = 24};
    session.pid = forkpty(&session.terminal, NULL, NULL, &size);
    CHECK(session.pid >= 0);
    if (session.pid == 0) {
        (void)setenv("TERM", term, 1);
        (void)setenv("LC_ALL", "C.UTF-8", 1);
        (void)setenv("ASAN_OPTIONS", "detect_leaks=0", 1); /* it cannot see what LuaJIT's heap points to */
        (void)signal(SIGINT, SIG_DFL);
        if (chdir(session.folder) != 0)
            _exit(121);
    }
    return session.pid;
}

static inline void type(const char *keys)
{
    CHECK_INT(write(session.terminal, keys, strlen(keys)), strlen(keys));
}

/* Waits until `text` has been printed: 1, and all up to its end counts as seen; 0: it was not, in this many seconds. */
static inline int appears(const char *text, double patience)
{
    const double until = lr_time() + patience;
    for (;;) {
        session.seen[session.size] = 0;
        char *at = memmem(session.seen, session.size, text, strlen(text));
        if (at != NULL) {
            const size_t used = (size_t)(at - session.seen) + strlen(text);
            session.size -= used;
            memmove(session.seen, session.seen + used, session.size + 1);
            return 1;
        }
        if (session.size > sizeof session.seen / 2) { /* a bar redraws itself for long: what is new counts */
            session.size -= sizeof session.seen / 4;
            memmove(session.seen, session.seen + sizeof session.seen / 4, session.size);
        }
        const double left = until - lr_time();
        struct pollfd fd = {.fd = session.terminal, .events = POLLIN};
        if (left <= 0 || poll(&fd, 1, (int)(left * 1000)) <= 0)
            return 0;
        const ssize_t n = read(session.terminal, session.seen + session.size, sizeof session.seen - 1 - session.size);
        if (n <= 0)
            return 0;
        session.size += (size_t)n;
    }
}

/* Ends the program, if it still runs, and removes the folder. */
static inline void session_end(void)
{
    if (session.pid > 0) {
        (void)kill(session.pid, SIGKILL);
        (void)waitpid(session.pid, NULL, 0);
        (void)close(session.terminal);
    }
    if (session.folder[0] != 0 && lr_tree_remove(session.folder) != LR_OK)
        printf("    %s\n", lr_last_error());
    session.pid = 0;
    session.folder[0] = 0;
}

#define EXPECT_WITHIN(text, patience)                                                                                  \
    do {                                                                                                               \
        if (!appears(text, patience)) {                                                                                \
            printf("    printed instead: <<%.*s>>\n", (int)session.size, session.seen);                                \
            session_end();                                                                                             \
            LR_TEST_FAIL("\"%s\" was never printed", text);                                                            \
        }                                                                                                              \
    } while (0)

#endif
