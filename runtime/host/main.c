/* main.c: the program. Starts Lua with the embedded modules and runs a recipe. */
#include "core/core.h"
#include "host/modules.h"
#include <lauxlib.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* package.loaders entry: $LORARUN_LUA_PATH/lorarun/x.lua when that variable is set, else the module inside the program. */
static int load_module(lua_State *L)
{
    const char *name = luaL_checkstring(L, 1), *dir = getenv("LORARUN_LUA_PATH");
    if (dir != NULL && *dir != 0) {
        const char *tail = luaL_gsub(L, name, ".", "/");
        const char *const patterns[] = {"%s/%s.lua", "%s/%s/init.lua"};
        for (size_t i = 0; i < LR_COUNT_OF(patterns); i++) {
            lua_pushfstring(L, patterns[i], dir, tail);
            FILE *f = fopen(lua_tostring(L, -1), "rb");
            if (f != NULL) {
                fclose(f);
                if (luaL_loadfile(L, lua_tostring(L, -1)) != 0)
                    return lua_error(L);
                return 1;
            }
        }
    }
    for (const lr_lua_module *m = lr_lua_modules; m->name != NULL; m++)
        if (strcmp(m->name, name) == 0) {
            lua_pushfstring(L, "@lua/%s.lua", name);
            if (luaL_loadbuffer(L, m->text, m->size, lua_tostring(L, -1)) != 0)
                return lua_error(L);
            return 1;
        }
    lua_pushfstring(L, "\n\tno module '%s' inside lorarun", name);
    return 1;
}

static int traceback(lua_State *L)
{
    luaL_traceback(L, L, lua_tostring(L, 1), 1);
    return 1;
}

int main(int argc, char **argv)
{
    lua_State *L = luaL_newstate();
    if (L == NULL || argc < 2)
        return 1;
    luaL_openlibs(L);
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "loaders");
    lua_pushcfunction(L, load_module);
    lua_rawseti(L, -2, (int)lua_objlen(L, -2) + 1);
    lua_settop(L, 0);
    if (getenv("LORARUN_JIT") != NULL && strcmp(getenv("LORARUN_JIT"), "off") == 0)
        (void)luaL_dostring(L, "jit.off()");
    lua_createtable(L, argc, 0);
    for (int i = 0; i < argc; i++) {
        lua_pushstring(L, argv[i]);
        lua_rawseti(L, -2, i - 1);
    }
    lua_setglobal(L, "arg");
    lua_pushcfunction(L, traceback);
    int failed = luaL_loadfile(L, argv[1]) != 0 || lua_pcall(L, 0, 0, 1) != 0;
    if (failed)
        fprintf(stderr, "%s\n", lua_tostring(L, -1));
    lua_close(L);
    return failed;
}
