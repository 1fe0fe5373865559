/* signals.c: SIGINT, SIGTERM and SIGUSR1, handled in two ways, which may both be on.
 *
 *   lr_signal_catch   For a training loop. The first SIGINT or SIGTERM is only noted, so that the loop can finish its step, save
 *   and
 *                     end. A second one does what it would have done without catching: it ends the program or, at the prompt,
 *                     stops the evaluation. A launched rank ignores the second one: its launcher kills the ranks then, and a
 *                     batch system or service manager that signals every process of a job reaches a rank twice, once through the
 *                     launcher. SIGUSR1 asks the loop to save and go on, any number of times.
 *   host.interrupts   For the prompt. Ctrl-C stops what is being evaluated, never the program. Ops look at the flag that
 *                     lr_interrupt_raise sets; a hook stops Lua code by raising an error at the next instruction.
 *
 * Invariants
 *   - Handlers use atomics, lua_sethook and sigaction only.
 *   - A signal that was ignored when the program started (a background job of a shell script) stays ignored. The exception is
 *     SIGUSR1: launched ranks start with it ignored, so that it does not end them before they train. */
#define _GNU_SOURCE
#include "host/host.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

/* ---- the training loop ---------------------------------------------------------------------------------------------- */
static const int caught_signals[] = {SIGINT, SIGTERM, SIGUSR1};
static struct sigaction before_catch[LR_COUNT_OF(caught_signals)];
static int catching;
static atomic_int pending; /* not yet returned to the caller; one to stop replaces one to save */
static atomic_int stops;   /* signals to stop since catching began */

static void note_signal(int signal_number)
{
    if (signal_number == SIGUSR1) {
        int none = 0;
        (void)atomic_compare_exchange_strong(&pending, &none, signal_number);
        return;
    }
    if (atomic_fetch_add(&stops, 1) == 0) {
        atomic_store(&pending, signal_number);
        return;
    }
    if (lr_rank_launched())
        return;
    const struct sigaction *before = &before_catch[signal_number == SIGTERM];
    if (before->sa_handler != SIG_DFL) {
        before->sa_handler(signal_number);
        return;
    }
    const int saved = errno;
    (void)signal(signal_number, SIG_DFL);
    (void)raise(signal_number); /* delivered when this handler returns */
    errno = saved;
}

int lr_signal_catch(int on)
{
    if ((on != 0) == catching)
        return LR_OK;
    (void)lr_rank_launched(); /* the first call makes system calls that a handler must not make */
    atomic_store(&pending, 0);
    atomic_store(&stops, 0);
    for (size_t i = 0; i < LR_COUNT_OF(caught_signals); i++) {
        if (!on) {
            (void)sigaction(caught_signals[i], &before_catch[i], NULL);
            continue;
        }
        (void)sigaction(caught_signals[i], NULL, &before_catch[i]);
        if (before_catch[i].sa_handler == SIG_IGN && caught_signals[i] != SIGUSR1)
            continue;
        struct sigaction action = {.sa_handler = note_signal, .sa_flags = SA_RESTART};
        sigemptyset(&action.sa_mask);
        (void)sigaction(caught_signals[i], &action, NULL);
    }
    catching = on != 0;
    return LR_OK;
}

int lr_signal_pending(void)
{
    return atomic_exchange(&pending, 0);
}

/* ---- the prompt ----------------------------------------------------------------------------------------------------- */
static struct sigaction before_prompt;
static int at_prompt;
static pthread_t prompt_thread;
static lua_State *volatile evaluating; /* NULL while nothing is being evaluated */
static atomic_int interrupted;

static void stop_evaluation(lua_State *L, lua_Debug *where)
{
    (void)where;
    lua_sethook(L, NULL, 0, 0);
    if (!lr_interrupt_take())
        return; /* an op took the interrupt first, and raises its own error */
    lua_pushliteral(L, "interrupted");
    (void)lua_error(L);
}

static void interrupt(int signal_number)
{
    const int saved = errno;
    if (!pthread_equal(pthread_self(), prompt_thread)) { /* a compute thread got it, but Lua belongs to the prompt's */
        (void)pthread_kill(prompt_thread, signal_number);
    } else {
        atomic_store(&interrupted, 1);
        if (evaluating != NULL) {
            lr_interrupt_raise();
            lua_sethook(evaluating, stop_evaluation, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
        }
    }
    errno = saved;
}

/* interrupts(on): from now on SIGINT stops evaluations instead of the program. interrupts(false) restores what was before. */
static int interrupts(lua_State *L)
{
    const int on = lua_toboolean(L, 1);
    if (on == at_prompt)
        return 0;
    at_prompt = on;
    lr_interrupt_enable(on);
    if (on) {
        prompt_thread = pthread_self();
        /* no SA_RESTART: a read that waits for the keyboard must end */
        struct sigaction action = {.sa_handler = interrupt};
        sigemptyset(&action.sa_mask);
        (void)sigaction(SIGINT, &action, &before_prompt);
    } else {
        (void)sigaction(SIGINT, &before_prompt, NULL);
    }
    return 0;
}

/* evaluate(fn, handler) -> true, results... or false, what handler returned: an xpcall that SIGINT can stop. It is in C because
 * a hook cannot fire in C: no error is raised after fn has ended and before interrupts are off. */
static int evaluate(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TFUNCTION);
    luaL_checktype(L, 2, LUA_TFUNCTION);
    lua_settop(L, 2);
    lua_insert(L, 1); /* handler, fn */
    atomic_store(&interrupted, 0);
    evaluating = L;
    const int failed = lua_pcall(L, 0, LUA_MULTRET, 1) != 0;
    evaluating = NULL;
    lua_sethook(L, NULL, 0, 0);
    (void)lr_interrupt_take();
    lua_pushboolean(L, !failed);
    lua_replace(L, 1);
    return lua_gettop(L);
}

/* interrupted() -> whether SIGINT came since the last call, or since the last evaluation began. */
static int take_interrupted(lua_State *L)
{
    lua_pushboolean(L, atomic_exchange(&interrupted, 0));
    return 1;
}

void lr_host_add_evaluation(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"interrupts", interrupts}, {"evaluate", evaluate}, {"interrupted", take_interrupted}, {NULL, NULL}};
    luaL_register(L, NULL, functions);
}
