/* test_terminal.c: a job of two ranks on a terminal, as a person sees it: rank 0's progress bar redraws itself, lines of
 * others are put above it, Ctrl-C counts once, and a window that changes its size is known to the rank. */
#define _GNU_SOURCE
#include "lr_test.h"
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define ERASE "\r\x1b[K"

enum { PATIENCE = 60 };

static struct session {
    pid_t pid;
    int terminal;
    char folder[64];
    char seen[1 << 16]; /* what was printed and nobody has waited for yet */
    size_t size;
} session;

/* Start a recipe of two ranks on a new terminal of 80 columns. */
static void start(const char *recipe)
{
    const char *program = getenv("LORARUN_PROGRAM");
    CHECK(program != NULL);
    session.size = 0;
    (void)snprintf(session.folder, sizeof session.folder, "/tmp/lorarun-terminal-XXXXXX");
    CHECK(mkdtemp(session.folder) != NULL);
    char path[128];
    (void)snprintf(path, sizeof path, "%s/recipe.lua", session.folder);
    FILE *f = fopen(path, "w");
    CHECK(f != NULL);
    CHECK(fprintf(f,
                  "local lr, C, ffi = require 'lorarun', require 'lorarun.base.c', require 'ffi'\n"
                  "ffi.cdef 'int usleep(unsigned);'\n"
                  "local job = lr.launch { processes = 2 }\n"
                  "%s",
                  recipe) > 0 &&
          fclose(f) == 0);
    struct winsize size = {.ws_col = 80, .ws_row = 24};
    session.pid = forkpty(&session.terminal, NULL, NULL, &size);
    CHECK(session.pid >= 0);
    if (session.pid == 0) {
        (void)setenv("TERM", "xterm", 1);
        (void)setenv("LC_ALL", "C.UTF-8", 1);
        (void)setenv("ASAN_OPTIONS", "detect_leaks=0", 1); /* it cannot see what LuaJIT's heap points to */
        (void)signal(SIGINT, SIG_DFL);
        (void)execl(program, program, path, (char *)NULL);
        _exit(122);
    }
}

/* Wait until `text` has been printed; all up to its end counts as seen. */
static int appears(const char *text)
{
    const double until = lr_time() + PATIENCE;
    for (;;) {
        session.seen[session.size] = 0;
        char *at = memmem(session.seen, session.size, text, strlen(text));
        if (at != NULL) {
            const size_t used = (size_t)(at - session.seen) + strlen(text);
            session.size -= used;
            memmove(session.seen, session.seen + used, session.size);
            return 1;
        }
        struct pollfd fd = {.fd = session.terminal, .events = POLLIN};
        if (lr_time() > until || poll(&fd, 1, 1000) < 0)
            return 0;
        if (session.size > sizeof session.seen / 2) { /* a bar redraws itself for long: what is new counts */
            session.size -= sizeof session.seen / 4;
            memmove(session.seen, session.seen + sizeof session.seen / 4, session.size);
        }
        const ssize_t n = fd.revents != 0 ? read(session.terminal, session.seen + session.size,
                                                 sizeof session.seen - 1 - session.size)
                                          : 0;
        if (n < 0)
            return 0;
        session.size += (size_t)n;
    }
}

#define EXPECT(text)                                                                                                   \
    do {                                                                                                               \
        if (!appears(text))                                                                                            \
            LR_TEST_FAIL("'%s' did not appear; the last seen is '%s'", text, session.seen);                            \
    } while (0)

static void type(const char *keys)
{
    CHECK_INT(write(session.terminal, keys, strlen(keys)), strlen(keys));
}

/* Wait for the end: the exit status, or minus the signal. */
static int end(void)
{
    char rest[4096];
    while (read(session.terminal, rest, sizeof rest) > 0)
        continue;
    int status;
    CHECK_INT(waitpid(session.pid, &status, 0), session.pid);
    (void)close(session.terminal);
    char command[128];
    (void)snprintf(command, sizeof command, "rm -rf '%s'", session.folder);
    CHECK_INT(system(command), 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST(lines_of_other_ranks_are_put_above_the_bar)
{
    start("if job.rank == 0 then\n"
          "  local bar = lr.progress.new { total = 1000 }\n"
          "  for i = 1, 1000 do\n"
          "    bar:update(i, { { 'loss', '0.5' } })\n"
          "    ffi.C.usleep(3000)\n"
          "  end\n"
          "  bar:close()\n"
          "else\n"
          "  ffi.C.usleep(1000000)\n"
          "  io.stderr:write 'a word of mine\\n'\n"
          "end\n");
    EXPECT(ERASE "  0%|");
    EXPECT(ERASE "[rank 1] a word of mine\r\n"); /* the line of the bar is erased for it */
    EXPECT("%|");                                /* and the bar stands below */
    EXPECT("| 1000/1000 [");
    EXPECT("loss 0.5\r\n");
    CHECK_INT(end(), 0);
}

TEST(ctrl_c_counts_once)
{
    start("C.lr_signal_catch(1)\n"
          "lr.comm.barrier()\n"
          "if job.rank == 0 then print 'ready' end\n"
          "local first = 0\n"
          "while first == 0 do first = C.lr_signal_pending() ffi.C.usleep(5000) end\n"
          "local stop = C.lr_time() + 0.5\n"
          "local more = 0\n"
          "while C.lr_time() < stop do more = more + C.lr_signal_pending() ffi.C.usleep(5000) end\n"
          "io.stderr:write(('rank %d: %d, then %d\\n'):format(job.rank, first, more))\n"
          "lr.comm.barrier()\n"
          "os.exit(128 + first)\n");
    EXPECT("ready\r\n");
    type("\x03");
    EXPECT("lorarun: SIGINT: the ranks finish their step and leave; a second one kills them\r\n");
    EXPECT(": 2, then 0\r\n");
    EXPECT(": 2, then 0\r\n");
    CHECK_INT(end(), 130);
}

TEST(ctrl_c_twice_kills)
{
    start("C.lr_signal_catch(1)\n"
          "lr.comm.barrier()\n"
          "if job.rank == 0 then print 'ready' end\n"
          "while true do ffi.C.usleep(5000) end\n");
    EXPECT("ready\r\n");
    type("\x03");
    EXPECT("a second one kills them\r\n");
    type("\x03");
    EXPECT("the ranks are killed\r\n");
    CHECK_INT(end(), 130);
}

TEST(ctrl_z_without_a_shell_stops_nobody)
{
    start("lr.comm.barrier()\n"
          "if job.rank == 0 then print 'ready' end\n"
          "ffi.C.usleep(500000)\n"
          "lr.comm.barrier()\n"
          "if job.rank == 0 then print 'gone on' end\n");
    EXPECT("ready\r\n");
    type("\x1a");
    EXPECT("gone on\r\n");
    CHECK_INT(end(), 0);
}

TEST(the_window_is_known_to_rank_0)
{
    start("if job.rank == 0 then\n"
          "  print('width', C.lr_terminal_width(1), C.lr_terminal_width(0))\n"
          "  while C.lr_terminal_width(1) == 80 do ffi.C.usleep(5000) end\n"
          "  print('now', C.lr_terminal_width(1))\n"
          "end\n");
    EXPECT("width\t80\t0\r\n");
    struct winsize size = {.ws_col = 101, .ws_row = 30};
    CHECK(ioctl(session.terminal, TIOCSWINSZ, &size) == 0);
    EXPECT("now\t101\r\n");
    CHECK_INT(end(), 0);
}

TEST_MAIN()
