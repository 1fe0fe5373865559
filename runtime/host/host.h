/* host.h: what the files of the program share. Private to runtime/host.
 *
 * The host is the only C here that may use lua_*: it owns the Lua state, the signals and the terminal. It offers
 * mechanism to Lua as the module "lorarun.host"; what the command line means and how the prompt behaves is written in
 * lua/lorarun. */
#ifndef LR_HOST_H
#define LR_HOST_H

#include "core/core.h"
#include <lauxlib.h>
#include <lualib.h>

/* Each pushes nothing and adds its functions to the table on top of the stack. */
void lr_host_add_evaluation(lua_State *L); /* signals.c: interrupts(on), evaluate(fn, handler), interrupted() */
void lr_host_add_editing(
    lua_State *L); /* repl.c: edit_open(complete), edit_line(prompt), edit_remember(line), edit_close() */

#endif
