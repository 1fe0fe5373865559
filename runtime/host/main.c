/* main.c: the program: a Lua state that runs lorarun.cli.program. lorarun's modules are inside the executable.
 *
 * What the command line means is decided in lua/lorarun/cli/program.lua. Environment: LORARUN_LUA_PATH names a folder
 * whose lorarun/x.lua replace the embedded modules (for work on lorarun itself; models/x.lua there is looked up in Lua, by
 * models/architectures.lua); LORARUN_JIT=off interprets everything. */
#include "core/limits.h"
#include "host/host.h"
#include "host/modules.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Give the chunk on top of the stack the plain table of globals: recipes may replace the environment of what is loaded,
 * and lorarun's own modules are no part of that. Upvalue 1 of the calling function is that table. */
static int own_module(lua_State *L, int load_status)
{
    if (load_status != 0)
        return lua_error(L);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_setfenv(L, -2);
    return 1;
}

/* The loader in package.loaders of lorarun and lorarun.*: nothing on package.path can take their place by accident. */
static int load_module(lua_State *L)
{
    const char *name = luaL_checkstring(L, 1), *dir = getenv("LORARUN_LUA_PATH");
    if (strcmp(name, "lorarun") != 0 && strncmp(name, "lorarun.", 8) != 0)
        return 0;
    if (dir != NULL && *dir != 0) {
        const char *tail = luaL_gsub(L, name, ".", "/");
        static const char *const patterns[] = {"%s/%s.lua", "%s/%s/init.lua"};
        for (size_t i = 0; i < LR_COUNT_OF(patterns); i++) {
            lua_pushfstring(L, patterns[i], dir, tail);
            FILE *f = fopen(lua_tostring(L, -1), "rb");
            if (f != NULL) {
                (void)fclose(f);
                return own_module(L, luaL_loadfile(L, lua_tostring(L, -1)));
            }
        }
    }
    for (const lr_lua_module *m = lr_lua_modules; m->name != NULL; m++)
        if (strcmp(m->name, name) == 0) {
            lua_pushfstring(L, "@lua/%s.lua", name);
            return own_module(L, luaL_loadbuffer(L, m->text, m->size, lua_tostring(L, -1)));
        }
    return luaL_error(L, "lorarun has no module '%s'", name);
}

/* modules() -> the names of the embedded modules, for completion and "did you mean". */
static int module_names(lua_State *L)
{
    lua_newtable(L);
    int n = 0;
    for (const lr_lua_module *m = lr_lua_modules; m->name != NULL; m++) {
        lua_pushstring(L, m->name);
        lua_rawseti(L, -2, ++n);
    }
    return 1;
}

/* The module lorarun.host. It is opened by lorarun.cli.program, on the main thread. */
static int open_host(lua_State *L)
{
    lua_newtable(L);
    lua_pushcfunction(L, module_names);
    lua_setfield(L, -2, "modules");
    (void)lua_pushthread(L);
    lua_setfield(L, -2, "main_thread");
    lr_host_add_evaluation(L);
    lr_host_add_editing(L);
    return 1;
}

/* Puts the loader second in package.loaders: after package.preload, before files. */
static void add_loader(lua_State *L)
{
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "preload");
    lua_pushcfunction(L, open_host);
    lua_setfield(L, -2, "lorarun.host");
    lua_pop(L, 1);
    lua_getfield(L, -1, "loaders");
    for (int i = (int)lua_objlen(L, -1); i >= 2; i--) {
        lua_rawgeti(L, -1, i);
        lua_rawseti(L, -2, i + 1);
    }
    lua_pushvalue(L, LUA_GLOBALSINDEX);
    lua_pushcclosure(L, load_module, 1);
    lua_rawseti(L, -2, 2);
    lua_pop(L, 2);
}

typedef struct command_line {
    int argc;
    char **argv;
    int exit_status;
} command_line;

static int run(lua_State *L)
{
    command_line *given = lua_touserdata(L, 1);
    luaL_openlibs(L);
    add_loader(L);
    const char *jit = getenv("LORARUN_JIT");
    if (jit != NULL && strcmp(jit, "off") == 0 && luaL_dostring(L, "jit.off()") != 0)
        return lua_error(L);
    lua_getglobal(L, "require");
    lua_pushliteral(L, "lorarun.cli.program");
    lua_call(L, 1, 1);
    lua_createtable(L, given->argc, 1);
    for (int i = 0; i < given->argc; i++) {
        lua_pushstring(L, given->argv[i]);
        lua_rawseti(L, -2, i);
    }
    lua_call(L, 1, 1);
    given->exit_status = (int)lua_tointeger(L, -1);
    return 0;
}

/* OpenMP's threads wait for each other after every op. By default they spin for milliseconds. On a machine that has other work
 * to do this keeps the thread that they wait for off its core, and a training step takes five times as long. A short spin costs
 * nothing measurable on a quiet machine (docs/benchmarks.md). libgomp reads its environment before main runs, so the program
 * executes itself once more; if that fails, it goes on without the setting. */
static void wait_briefly(char **argv)
{
    char self[4096];
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0 || getenv("GOMP_SPINCOUNT") != NULL || getenv("OMP_WAIT_POLICY") != NULL)
        return;
    self[n] = 0;
    if (setenv("GOMP_SPINCOUNT", "5000", 1) == 0)
        (void)execv(self, argv);
}

int main(int argc, char **argv)
{
    lr_limits_prepare();
    wait_briefly(argv);
    (void)signal(SIGPIPE, SIG_DFL); /* a reader that goes away ends the program quietly, whatever its parent had set */
    command_line given = {argc, argv, EXIT_FAILURE};
    lua_State *L = luaL_newstate();
    if (L == NULL) {
        (void)fputs("lorarun: not enough memory for Lua\n", stderr);
        return EXIT_FAILURE;
    }
    if (lua_cpcall(L, run, &given) != 0) {
        (void)lr_fail(LR_EINTERNAL, "%s", lua_tostring(L, -1)); /* lr_fail makes escape sequences in it harmless */
        (void)fprintf(stderr, "lorarun: %s\n", lr_last_error());
    }
    lua_close(L);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        (void)fprintf(stderr, "lorarun: cannot write to standard output: %s\n", strerror(errno));
        return EXIT_FAILURE;
    }
    return given.exit_status;
}
