/* host.h: what the files of the program share. Private to runtime/host.
 *
 * Only the host may use lua_*: it owns the Lua state, the signals and the terminal, and gives Lua the module "lorarun.host".
 * What the command line means and how the prompt behaves is written in lua/lorarun/cli. */
#ifndef LR_HOST_H
#define LR_HOST_H

#include "core/core.h"
#include <lauxlib.h>
#include <lualib.h>

/* Each pushes nothing and adds its functions to the table on top of the stack. */
void lr_host_add_evaluation(lua_State *L); /* signals.c: interrupts(on), evaluate(fn, handler), interrupted() */
/* repl.c: edit_open(complete), edit_line(prompt), edit_remember(line), edit_close() */
void lr_host_add_editing(lua_State *L);

#endif
