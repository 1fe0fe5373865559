/* test_repl.c: the prompt, driven through a pseudo-terminal as a person at a keyboard drives it. LORARUN_PROGRAM names the
 * program. Tests wait for what the program prints, never for what the terminal echoes of the typing. */
#define _GNU_SOURCE
#include "terminal.h"
#include <stdlib.h>
#include <sys/stat.h>
#include <termios.h>

#define CTRL_C "\x03"
#define CTRL_D "\x04"
#define ARROW_UP "\x1b[A"
#define EXPECT(text) EXPECT_WITHIN(text, PATIENCE)

static const double PATIENCE = 20; /* seconds */

/* Start the program, whose HOME is the session's folder. arguments: up to three, then NULLs. */
static void start(const char *term, const char *arg1, const char *arg2, const char *arg3)
{
    if (session_fork(term) == 0) {
        const char *program = getenv("LORARUN_PROGRAM");
        (void)setenv("HOME", session.folder, 1);
        (void)unsetenv("XDG_STATE_HOME");
        (void)execl(program, program, arg1, arg2, arg3, (char *)NULL);
        _exit(122);
    }
}

/* After it has printed a prompt, the editor takes a moment before it reads single keys; Ctrl-C and Ctrl-D in that moment are
 * lost. Like a person, press again when nothing happens. (While something is being evaluated there is no such moment: tests
 * press once.) */
enum { PRESSES = 20 };
static const double BETWEEN_PRESSES = 0.5; /* seconds */

static void press_until(const char *key, const char *text)
{
    for (int i = 0; i < PRESSES; i++) {
        type(key);
        if (appears(text, BETWEEN_PRESSES))
            return;
    }
    session_end();
    LR_TEST_FAIL("\"%s\" was never printed", text);
}

/* Wait until the program's main thread sleeps: it has reached its system call. */
static void wait_until_asleep(void)
{
    char path[64], state = '?';
    (void)snprintf(path, sizeof path, "/proc/%d/stat", (int)session.pid);
    for (const double until = lr_time() + PATIENCE; state != 'S' && lr_time() < until;) {
        FILE *f = fopen(path, "r");
        if (f == NULL || fscanf(f, "%*d (%*[^)]) %c", &state) != 1)
            state = '?';
        if (f != NULL)
            (void)fclose(f);
        (void)usleep(2000);
    }
}

/* Wait for the program to end, pressing Ctrl-D if asked to. Returns its exit status. */
static int exit_status(int press)
{
    const double until = lr_time() + PATIENCE;
    double next_press = 0;
    int status = 0;
    while (waitpid(session.pid, &status, WNOHANG) == 0) {
        if (press && lr_time() >= next_press) {
            (void)!write(session.terminal, CTRL_D, 1);
            next_press = lr_time() + BETWEEN_PRESSES;
        }
        char drain[256];
        struct pollfd fd = {.fd = session.terminal, .events = POLLIN};
        if (poll(&fd, 1, 20) > 0 && read(session.terminal, drain, sizeof drain) < 0)
            (void)usleep(1000);
        if (lr_time() > until) {
            session_end();
            LR_TEST_FAIL("the program does not end");
        }
    }
    session.pid = 0;
    (void)close(session.terminal);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void open_prompt(void)
{
    session_folder();
    start("xterm", NULL, NULL, NULL);
    EXPECT("Ctrl-D leaves.\r\n");
    EXPECT("> ");
}

TEST(expressions_statements_and_the_way_out)
{
    open_prompt();
    type("20 + 22\n");
    EXPECT("\r\n42\r\n");
    type("x = 'te' .. 'xt'\n");
    type("x, nil, {1, a = {}}\n");
    EXPECT("\r\ntext\tnil\t{ 1, a = {} }\r\n");
    type("= #'h\xc3\xa9' * 100\n");
    EXPECT("\r\n300\r\n");
    CHECK_INT(exit_status(1), 0);
    session_end();
}

TEST(os_exit_leaves_with_its_status)
{
    open_prompt();
    type("os.exit(6)\n");
    CHECK_INT(exit_status(0), 6);
    session_end();
}

TEST(a_chunk_may_take_several_lines)
{
    open_prompt();
    type("for i = 1, 2 do\n");
    EXPECT(">> ");
    type("print('i' .. i * 11)\n");
    EXPECT(">> ");
    type("end\n");
    EXPECT("\r\ni11\r\ni22\r\n");
    type("string.rep('ab',\n");
    EXPECT(">> ");
    type("3)\n");
    EXPECT("\r\nababab\r\n");
    session_end();
}

TEST(lr_is_there)
{
    open_prompt();
    type("'<' .. type(lr.args) .. '>'\n");
    EXPECT("\r\n<function>\r\n");
    type("lr.no_such_thing\n");
    EXPECT("\r\nstdin:1: lorarun has no 'no_such_thing'");
    session_end();
}

TEST(an_error_shows_the_users_calls_and_changes_nothing)
{
    open_prompt();
    type("kept = 5\n");
    type("function f() error('bo' .. 'om') end\n");
    type("local function g() f() return 1 end g()\n");
    EXPECT("\r\nstdin:1: boom\r\n  stdin:1: in function 'f'\r\n  stdin:1: in function 'g'\r\n  stdin:1: in main "
           "chunk\r\n");
    EXPECT("> ");
    type("x = = 1\n");
    EXPECT("\r\nstdin:1: unexpected symbol near '='\r\n");
    type("kept * 3\n");
    EXPECT("\r\n15\r\n");
    session_end();
}

TEST(tab_completes_what_is_certain)
{
    open_prompt();
    type("string.upp\t('x1')\n");
    EXPECT("\r\nX1\r\n");
    type("s = 'abc'\n");
    type("s:upp\t()\n");
    EXPECT("\r\nABC\r\n");
    type("t = setmetatable({}, { __index = { inherited = function() return 'got' .. ' it' end } })\n");
    type("t:inh\t()\n");
    EXPECT("\r\ngot it\r\n");
    type("u = setmetatable({}, { __index = function(_, k) return k == 'made' and { inside = 4242 } or nil end })\n");
    type("u.made.ins\t\n");
    EXPECT("\r\n4242\r\n");
    type("type(require 'lorarun.base.sugg\t')\n");
    EXPECT("\r\ntable\r\n");
    type("1 .. tostr\t(2)\n");
    EXPECT("\r\n12\r\n");
    type("if true then retu\t 77 end\n");
    EXPECT("\r\n77\r\n");
    session_end();
}

TEST(tab_lists_what_is_possible)
{
    open_prompt();
    type("string.re\t");
    EXPECT("\r\nrep      reverse\r\n");
    type("p('ab', 2)\n");
    EXPECT("\r\nabab\r\n");
    type("v = { only_a_value = 1, only_a_method = print }\n");
    type("v.only_a_\t");
    EXPECT("\r\nonly_a_method  only_a_value\r\n");
    type("value\n");
    EXPECT("\r\n1\r\n");
    type("v:only_a_\t"); /* after a colon only functions count, so this is certain */
    type("('called')\n");
    EXPECT("\tcalled\r\n");
    session_end();
}

TEST(tab_knows_the_names_of_lr)
{
    open_prompt();
    type("lr.simil\t\n"); /* made when it is first read */
    EXPECT("\r\nfunction <");
    type("lr.lo\t");
    EXPECT("\r\nload_model      load_tokenizer  loss\r\n");
    type("ss.multiple_neg\t {}.name\n");
    EXPECT("\r\nmultiple_negatives_ranking\r\n");
    session_end();
}

TEST(help_tells_more_and_exit_and_quit_leave)
{
    static const char *const ways[] = {"exit\n", " quit()\n"};
    for (size_t i = 0; i < 2; i++) {
        open_prompt();
        type("help\n");
        EXPECT("TAB completes, and lists");
        EXPECT("> ");
        type(ways[i]);
        CHECK_INT(exit_status(0), 0);
        session_end();
    }
    open_prompt();
    type("quit = 33\n");
    type("quit\n"); /* a name that the user has given a value is the user's */
    EXPECT("\r\n33\r\n");
    session_end();
}

TEST(ctrl_c_drops_the_line_being_typed)
{
    open_prompt();
    type("nonsense ((");
    press_until(CTRL_C, "\r\n> ");
    type("3 * 7\n");
    EXPECT("\r\n21\r\n");
    type("for i = 1, 2 do\n");
    EXPECT(">> ");
    press_until(CTRL_C, "\r\n> ");
    type("3 * 8\n");
    EXPECT("\r\n24\r\n");
    session_end();
}

TEST(ctrl_c_stops_a_loop_and_not_the_program)
{
    open_prompt();
    for (int round = 0; round < 3; round++) {
        type("print('run' .. 'ning') io.flush() while true do end\n");
        EXPECT("\r\nrunning\r\n");
        type(CTRL_C);
        EXPECT("interrupted at stdin:1\r\n> ");
    }
    type("function spin() print('spin' .. 'ning') io.flush() while true do end end\n");
    type("do spin() end\n"); /* not an expression: a tail call would leave no trace of the chunk */
    EXPECT("\r\nspinning\r\n");
    type(CTRL_C);
    EXPECT("interrupted at stdin:1\r\n  stdin:1: in function 'spin'\r\n  stdin:1: in main chunk\r\n");
    type("5 * 5\n");
    EXPECT("\r\n25\r\n");
    session_end();
}

TEST(ctrl_c_stops_ops_called_from_compiled_code)
{
    session_folder();
    session_file("loop.lua", "local ops, tensor = require 'lorarun.tensor.ops', require 'lorarun.tensor.tensor'\n"
                             "function _G.work()\n"
                             "  local x = tensor.full({ 64 }, 1)\n"
                             "  print 'working' io.flush()\n"
                             "  while true do tensor.scope(function() ops.scale(x, 2) end) end\n"
                             "end\n");
    start("xterm", "-i", "loop.lua", NULL);
    EXPECT("> ");
    type("work()\n");
    EXPECT("\r\nworking\r\n");
    (void)usleep(300000); /* long enough to be compiled */
    type(CTRL_C);
    EXPECT("interrupted at loop.lua:5\r\n");
    type("6 * 6\n");
    EXPECT("\r\n36\r\n");
    /* the interrupt flag is cleared again */
    type("require('lorarun.tensor.tensor').full({ 2 }, 3):to_table()[2] + 40\n");
    EXPECT("\r\n43\r\n");
    session_end();
}

TEST(ctrl_c_stops_waiting_for_the_keyboard)
{
    open_prompt();
    type("print('wait' .. 'ing') io.flush() io.read()\n");
    EXPECT("\r\nwaiting\r\n");
    wait_until_asleep(); /* a Ctrl-C before read() begins would wait for a line */
    type(CTRL_C);
    EXPECT("interrupted");
    type("7 * 7\n");
    EXPECT("\r\n49\r\n");
    session_end();
}

TEST(a_signal_that_is_caught_is_noted_and_the_next_one_stops_the_evaluation)
{
    open_prompt();
    type("C = require 'lorarun.base.c'\n");
    type("C.lr_signal_catch(1) print('catch' .. 'ing') io.flush() repeat n = C.lr_signal_pending() until n ~= 0 "
         "print('no' .. 'ted ' .. n) "
         "io.flush() while true do end\n");
    EXPECT("catching\r\n");
    type(CTRL_C);
    EXPECT("noted 2\r\n");
    type(CTRL_C);
    EXPECT("interrupted at stdin:1");
    type("C.lr_signal_catch(0) 8 * 8\n");
    EXPECT("> ");
    session_end();
}

TEST(history_is_kept_between_sessions)
{
    open_prompt();
    type("remembered = 1100\n");
    type("remembered + 11\n");
    EXPECT("\r\n1111\r\n");
    CHECK_INT(exit_status(1), 0);
    char path[128], text[128] = "";
    (void)snprintf(path, sizeof path, "%s/.local/state/lorarun/history", session.folder);
    FILE *f = fopen(path, "r");
    CHECK(f != NULL);
    const size_t n = fread(text, 1, sizeof text - 1, f);
    (void)fclose(f);
    text[n] = 0;
    CHECK_STR(text, "remembered = 1100\nremembered + 11\n");
    struct stat st;
    CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600); /* only the owner may read what was typed */
    CHECK_INT(chmod(path, 0644), 0);                            /* as an older lorarun left it */
    start("xterm", NULL, NULL, NULL);
    EXPECT("> ");
    type(ARROW_UP ARROW_UP "\n");
    EXPECT("> ");
    type("remembered + 22\n");
    EXPECT("\r\n1122\r\n");
    CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);
    session_end();
}

TEST(a_home_that_cannot_be_written_is_no_obstacle)
{
    session_folder();
    session_file(".local", "a file where a folder should be\n");
    start("xterm", NULL, NULL, NULL);
    EXPECT("> ");
    type("9 * 9\n");
    EXPECT("\r\n81\r\n");
    session_end();
}

TEST(a_terminal_without_editing_works)
{
    session_folder();
    start("dumb", NULL, NULL, NULL);
    EXPECT("> ");
    type("for i = 1, 2 do\n");
    EXPECT(">> ");
    type("print('d' .. i * 5)\nend\n");
    EXPECT("d5\r\nd10\r\n");
    press_until(CTRL_C, "\r\n> ");
    type("print('run' .. 'ning') io.flush() while true do end\n");
    EXPECT("\r\nrunning\r\n");
    type(CTRL_C);
    EXPECT("interrupted at stdin:1\r\n> ");
    type("2 * 50\n");
    EXPECT("\r\n100\r\n");
    CHECK_INT(exit_status(1), 0);
    session_end();
}

TEST(a_recipe_that_fails_still_opens_the_prompt_with_i)
{
    session_folder();
    session_file("bad.lua", "_G.state = 66\nerror 'boom'\n");
    start("xterm", "-i", "bad.lua", NULL);
    EXPECT("lorarun: bad.lua:2: boom\r\n");
    EXPECT("> ");
    type("state + 600\n");
    EXPECT("\r\n666\r\n");
    CHECK_INT(exit_status(1), 1);
    session_end();
}

/* ---- one prompt for several ranks ---------------------------------------------------------------------------------- */
static void open_prompt_of_ranks(void)
{
    session_folder();
    start("xterm", "--num-processes=3", NULL, NULL);
    EXPECT("3 ranks run every line; rank 0 prints.\r\n");
    EXPECT("> ");
}

TEST(every_rank_runs_each_line_and_rank_0_prints)
{
    open_prompt_of_ranks();
    type("x = lr.comm.rank + 1\n");
    EXPECT("> ");
    type("lr.comm.all_reduce(x) * 100\n");
    EXPECT("\r\n600\r\n");
    type("print('rank ' .. lr.comm.rank)\n");
    EXPECT("\r\nrank 0\r\n");
    EXPECT("> ");
    type("for i = 1, 2 do\n");
    EXPECT(">> ");
    type("x = lr.comm.all_reduce(x) end\n");
    EXPECT("> ");
    type("lr.comm.all_reduce(x, 'min')\n");
    EXPECT("\r\n18\r\n");
    CHECK_INT(exit_status(1), 0);
    session_end();
}

TEST(an_error_on_one_rank_leaves_all_in_step)
{
    open_prompt_of_ranks();
    type("if lr.comm.rank == 2 then error('on' .. 'ly here') end\n");
    EXPECT("[rank 2] stdin:1: only here\r\n");
    type("if lr.comm.rank == 1 then error('ear' .. 'ly') end lr.comm.barrier()\n");
    EXPECT("the ranks do not agree on collective");
    EXPECT("[rank 1] stdin:1: early\r\n");
    type("lr.comm.all_reduce(1) * 1000\n");
    EXPECT("\r\n3000\r\n");
    type("error('every' .. 'where')\n"); /* told once */
    EXPECT("\r\neverywhere\r\n> ");
    session_end();
}

TEST(ctrl_c_stops_all_ranks)
{
    open_prompt_of_ranks();
    type("lr.comm.barrier() print('run' .. 'ning') io.flush() while true do end\n");
    EXPECT("\r\nrunning\r\n");
    press_until(CTRL_C, "interrupted at stdin:1");
    press_until(CTRL_C, "> ");
    type("lr.comm.all_reduce(1) * 1001\n");
    EXPECT("\r\n3003\r\n");
    /* a collective that one rank never reaches: it closes the connections, which are then made again */
    type("lr.comm.barrier() if lr.comm.rank == 0 then print('wait' .. 'ing') io.flush() end "
         "if lr.comm.rank == 1 then while true do end end lr.comm.barrier()\n");
    EXPECT("\r\nwaiting\r\n");
    press_until(CTRL_C, "> ");
    type("lr.comm.all_reduce(1) * 1002\n");
    EXPECT("\r\n3006\r\n");
    CHECK_INT(exit_status(1), 0);
    session_end();
}

TEST(a_rank_that_dies_at_the_prompt_ends_the_job)
{
    open_prompt_of_ranks();
    type("require('ffi').cdef 'int getpid(void); int kill(int, int);'\n");
    EXPECT("> ");
    type("if lr.comm.rank == 1 then require('ffi').C.kill(require('ffi').C.getpid(), 9) end\n");
    EXPECT("was killed by SIGKILL");
    CHECK_INT(exit_status(0), 137);
    session_end();
}

TEST_MAIN()
