/* repl.c: reading one line of input, edited with libedit. What a line means, what TAB offers and where the history is kept is
 * decided in lua/lorarun/cli/repl.lua.
 *
 * Invariant: at most one editor exists, since there is one terminal. */
#include "host/host.h"
#include <errno.h>
#include <histedit.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { REMEMBERED_LINES = 1000 };

static struct editor {
    EditLine *line;
    History *history;
    int complete;       /* registry reference: complete(text before the cursor) -> text to insert, text to show */
    const char *prompt; /* set while a line is being read */
    lua_State *L;       /* as prompt */
} editor = {.complete = LUA_NOREF};

static char *prompt(EditLine *el)
{
    (void)el;
    return (char *)(uintptr_t)editor.prompt; /* libedit reads it only */
}

static unsigned char complete(EditLine *el, int ch)
{
    (void)ch;
    lua_State *L = editor.L;
    const LineInfo *text = el_line(el);
    const int top = lua_gettop(L);
    unsigned char what_next = CC_REFRESH_BEEP;
    lua_rawgeti(L, LUA_REGISTRYINDEX, editor.complete);
    lua_pushlstring(L, text->buffer, (size_t)(text->cursor - text->buffer));
    if (lua_pcall(L, 1, 2, 0) == 0) {
        const char *insert = lua_tostring(L, top + 1), *show = lua_tostring(L, top + 2);
        if (show != NULL) {
            (void)fprintf(stdout, "\n%s\n", show);
            what_next = CC_REDISPLAY;
        }
        if (insert != NULL && *insert != 0 && el_insertstr(el, insert) == 0 && show == NULL)
            what_next = CC_REFRESH;
    }
    lua_settop(L, top);
    return what_next;
}

static void close_editor(lua_State *L)
{
    if (editor.line != NULL)
        el_end(editor.line);
    if (editor.history != NULL)
        history_end(editor.history);
    luaL_unref(L, LUA_REGISTRYINDEX, editor.complete);
    editor = (struct editor){.complete = LUA_NOREF};
}

/* edit_open(complete) -> true, or false if there is no terminal on which lines can be edited. */
static int edit_open(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TFUNCTION);
    const char *term = getenv("TERM");
    if (editor.line != NULL || !isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO) || term == NULL || *term == 0 ||
        strcmp(term, "dumb") == 0) {
        lua_pushboolean(L, 0);
        return 1;
    }
    (void)setlocale(LC_CTYPE, ""); /* for characters of more than one byte; numbers keep their decimal point */
    HistEvent event;
    editor.line = el_init("lorarun", stdin, stdout, stderr);
    editor.history = history_init();
    if (editor.line == NULL || editor.history == NULL ||
        history(editor.history, &event, H_SETSIZE, REMEMBERED_LINES) < 0) {
        close_editor(L);
        lua_pushboolean(L, 0);
        return 1;
    }
    (void)history(editor.history, &event, H_SETUNIQUE, 1);
    lua_pushvalue(L, 1);
    editor.complete = luaL_ref(L, LUA_REGISTRYINDEX);
    EditLine *el = editor.line;
    el_set(el, EL_PROMPT, prompt);
    el_set(el, EL_EDITOR, "emacs");
    el_set(el, EL_SIGNAL, 1); /* libedit restores the terminal before our handlers run, and after a stop or a resize */
    el_set(el, EL_HIST, history, editor.history);
    el_set(el, EL_ADDFN, "lua-complete", "complete a Lua name", complete);
    /* A Ctrl-D that is pressed between two prompts, while the terminal is in its own line mode, arrives as a NUL. If the
     * terminal has no "literal next" key, libedit takes NUL for it and would quote the next Ctrl-D: ignore it. */
    static const char *const bindings[][2] = {{"^@", "ed-ignore"},
                                              {"^I", "lua-complete"},
                                              {"^R", "em-inc-search-prev"},
                                              {"^W", "ed-delete-prev-word"},
                                              {"\\e[3~", "ed-delete-next-char"},
                                              {"\\e[1;5C", "em-next-word"},
                                              {"\\e[1;5D", "ed-prev-word"}};
    for (size_t i = 0; i < LR_COUNT_OF(bindings); i++)
        el_set(el, EL_BIND, bindings[i][0], bindings[i][1], NULL);
    (void)el_source(el, NULL); /* the user's own ~/.editrc comes last and can change all this */
    lua_pushboolean(L, 1);
    return 1;
}

/* edit_line(prompt) -> the line without its line end, or nil: input ended or SIGINT came (interrupted() tells which). */
static int edit_line(lua_State *L)
{
    if (editor.line == NULL)
        return luaL_error(L, "edit_line: no editor is open");
    editor.prompt = luaL_checkstring(L, 1);
    editor.L = L;
    int length = 0;
    const char *text = el_gets(editor.line, &length);
    editor.prompt = NULL;
    editor.L = NULL;
    if (text == NULL || length <= 0) {
        lua_pushnil(L);
        return 1;
    }
    size_t size = (size_t)length;
    while (size > 0 && (text[size - 1] == '\n' || text[size - 1] == '\r'))
        size--;
    lua_pushlstring(L, text, size);
    return 1;
}

/* edit_remember(line): from now on the arrow keys and ^R find it. */
static int edit_remember(lua_State *L)
{
    const char *text = luaL_checkstring(L, 1);
    HistEvent event;
    if (editor.history != NULL && *text != 0)
        (void)history(editor.history, &event, H_ENTER, text);
    return 0;
}

static int edit_close(lua_State *L)
{
    close_editor(L);
    return 0;
}

void lr_host_add_editing(lua_State *L)
{
    static const luaL_Reg functions[] = {{"edit_open", edit_open},
                                         {"edit_line", edit_line},
                                         {"edit_remember", edit_remember},
                                         {"edit_close", edit_close},
                                         {NULL, NULL}};
    luaL_register(L, NULL, functions);
}
