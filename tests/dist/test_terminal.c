/* test_terminal.c: a job of two ranks on a terminal, as a person sees it. Rank 0's progress bar redraws itself, lines of other
 * ranks are put above it, Ctrl-C counts once, and the rank knows when the window changes its size. */
#define _GNU_SOURCE
#include "terminal.h"
#include <sys/ioctl.h>

#define ERASE "\r\x1b[K"
#define EXPECT(text) EXPECT_WITHIN(text, 60)

/* Start a recipe of two ranks. */
static void start(const char *recipe)
{
    char text[4096];
    (void)snprintf(text, sizeof text,
                   "local lr, C, ffi = require 'lorarun', require 'lorarun.base.c', require 'ffi'\n"
                   "ffi.cdef 'int usleep(unsigned);'\n"
                   "local job = lr.launch { processes = 2 }\n"
                   "%s",
                   recipe);
    session_folder();
    session_file("recipe.lua", text);
    if (session_fork("xterm") == 0) {
        const char *program = getenv("LORARUN_PROGRAM");
        (void)execl(program, program, "recipe.lua", (char *)NULL);
        _exit(122);
    }
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
    session.pid = 0;
    session_end();
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
