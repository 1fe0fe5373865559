/* limits.c: what the system lets this process have: its own limits (ulimit), and those of its control groups (a container's, a
 * Slurm job's). An error that a limit may have caused names the limit, which the system's own words ("Cannot allocate memory")
 * do not.
 *
 * Memory has limits of two kinds. With a limit of addresses or data (ulimit -v, -d) the call that asks for more fails. Not all
 * libraries can bear that, so some room is kept for them (lr_limits_spare). With a control group's limit no call fails: the
 * kernel kills the process. So the allocator looks at it before it takes memory (lr_limits_allow).
 *
 * Control groups form a tree, and a process gets what the tightest of its ancestors allows. Version 2 has one tree with all
 * controllers, version 1 one tree for each. Inside a container the root of the tree may be the container's own group, while
 * /proc/self/cgroup has the path on the host: levels that do not exist are skipped. */
#define _GNU_SOURCE
#include "core/limits.h"
#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

enum { MAX_PATH = 1024, MAX_FILE = 4096 }; /* buffers on a stack that may be small itself (ulimit -s) */
static const int64_t NO_LIMIT = INT64_MAX;
static const int64_t BEYOND_ANY = (int64_t)1 << 60; /* version 1 writes no limit as a number near 2^63 */
static const rlim_t USUAL_STACK = 8 << 20;

static char root[MAX_PATH]; /* put before /proc and /sys; empty except in tests */

/* A look at the limits takes some fifty system calls. So after one, half of what it found may be taken without another, for a short
 * time. */
static struct {
    double looked;
    int64_t bytes;
} allowance;
static const double JUST_NOW = 0.1; /* seconds */

int lr_limits_root(const char *path)
{
    if (strlen(path) >= sizeof root)
        return lr_fail(LR_EINVAL, "a root of %zu characters", strlen(path));
    snprintf(root, sizeof root, "%s", path);
    allowance.bytes = 0;
    return LR_OK;
}

/* ---- the process's own limits ---------------------------------------------------------------------------------------- */
static const struct {
    int resource;
    const char *option, *unit; /* unit NULL: bytes */
} rows[LR_LIMIT_KINDS] = {
    [LR_LIMIT_ADDRESSES] = {RLIMIT_AS, "-v", NULL},
    [LR_LIMIT_DATA] = {RLIMIT_DATA, "-d", NULL},
    [LR_LIMIT_FILE_SIZE] = {RLIMIT_FSIZE, "-f", NULL},
    [LR_LIMIT_FILES] = {RLIMIT_NOFILE, "-n", "open files"},
    [LR_LIMIT_PROCESSES] = {RLIMIT_NPROC, "-u", "processes and threads of this user"},
    [LR_LIMIT_STACK] = {RLIMIT_STACK, "-s", NULL},
    [LR_LIMIT_SECONDS] = {RLIMIT_CPU, "-t", "seconds of processor time"},
};

int64_t lr_limit(int kind)
{
    struct rlimit limit;
    if (kind < 0 || kind >= LR_LIMIT_KINDS || getrlimit((__rlimit_resource_t)rows[kind].resource, &limit) != 0 ||
        limit.rlim_cur == RLIM_INFINITY)
        return -1;
    return limit.rlim_cur < (rlim_t)INT64_MAX ? (int64_t)limit.rlim_cur : -1;
}

static void size_text(char *out, size_t cap, double bytes)
{
    static const char *const units[] = {"B", "KB", "MB", "GB", "TB", "PB"};
    size_t u = 0;
    for (; bytes >= 1000 && u + 1 < LR_COUNT_OF(units); u++)
        bytes /= 1000;
    snprintf(out, cap, u == 0 ? "%.0f %s" : "%.1f %s", bytes, units[u]);
}

/* "ulimit -v: 4.1 GB" */
static void limit_text(char *out, size_t cap, int kind)
{
    const int64_t limit = lr_limit(kind);
    char size[32];
    size_text(size, sizeof size, (double)limit);
    if (rows[kind].unit == NULL)
        snprintf(out, cap, "ulimit %s: %s", rows[kind].option, size);
    else
        snprintf(out, cap, "ulimit %s: %" PRId64 " %s", rows[kind].option, limit, rows[kind].unit);
}

/* Bytes of addresses and of data that this process has, from /proc/self/statm. */
static bool taken_now(int64_t *addresses, int64_t *data)
{
    long pages[6] = {0};
    FILE *f = fopen("/proc/self/statm", "r");
    if (f == NULL)
        return false;
    const int n =
        fscanf(f, "%ld %ld %ld %ld %ld %ld", &pages[0], &pages[1], &pages[2], &pages[3], &pages[4], &pages[5]);
    (void)fclose(f);
    const long page = sysconf(_SC_PAGESIZE);
    *addresses = pages[0] * page;
    *data = pages[5] * page;
    return n == 6;
}

int64_t lr_limits_left(int kind)
{
    int64_t addresses = 0, data = 0;
    const int64_t limit = lr_limit(kind);
    if (limit < 0 || !taken_now(&addresses, &data))
        return NO_LIMIT;
    return lr_max64(0, limit - (kind == LR_LIMIT_ADDRESSES ? addresses : data));
}

int lr_limits_spare(void)
{
    if (lr_limit(LR_LIMIT_ADDRESSES) < 0 && lr_limit(LR_LIMIT_DATA) < 0)
        return LR_OK;
    const size_t bytes = LR_LIMITS_SPARE / 2;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return lr_fail_errno("no room for %zu bytes", bytes);
    munmap(p, bytes);
    return LR_OK;
}

/* ---- control groups -------------------------------------------------------------------------------------------------- */
/* A file below the root as text, cut to cap - 1 bytes. */
static bool read_text(const char *path, char *out, size_t cap)
{
    char whole[2 * MAX_PATH];
    snprintf(whole, sizeof whole, "%s%s", root, path);
    FILE *f = fopen(whole, "re");
    if (f == NULL)
        return false;
    const size_t n = fread(out, 1, cap - 1, f);
    const bool ok = ferror(f) == 0;
    (void)fclose(f);
    out[n] = 0;
    return ok;
}

/* Is `name` in `list`, whose names are separated by commas? */
static bool has_name(const char *list, size_t size, const char *name)
{
    const size_t n = strlen(name);
    for (const char *p = list; p + n <= list + size; p++)
        if ((p == list || p[-1] == ',') && strncmp(p, name, n) == 0 && (p + n == list + size || p[n] == ','))
            return true;
    return false;
}

/* This process's group of a controller: where its tree is mounted, and the group's path there without a slash at its end.
 * version: 1 or 2. */
static int find_group(const char *controller, char *mount, char *path, int *version)
{
    char text[MAX_FILE], *rest = NULL;
    if (!read_text("/proc/self/cgroup", text, sizeof text))
        return lr_fail(LR_ENOTFOUND, "this process has no control group");
    *version = 0;
    /* 12:cpu,cpuacct:/path or 0::/path */
    for (char *line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest)) {
        char *names = strchr(line, ':'), *own = names != NULL ? strchr(names + 1, ':') : NULL;
        if (own == NULL || *version == 1)
            continue;
        const size_t size = (size_t)(own - names - 1);
        if (size > 0 ? !has_name(names + 1, size, controller) : strncmp(line, "0:", 2) != 0)
            continue;
        *version = size > 0 ? 1 : 2;
        snprintf(mount, MAX_PATH, size > 0 ? "/sys/fs/cgroup/%s" : "/sys/fs/cgroup", controller);
        snprintf(path, MAX_PATH, "%s", own + 1);
    }
    for (size_t n = strlen(path); n > 0 && path[n - 1] == '/'; n--)
        path[n - 1] = 0;
    return *version != 0 ? LR_OK : lr_fail(LR_ENOTFOUND, "this process has no control group for %s", controller);
}

int lr_group_file(const char *controller, int level, const char *name, const char *name_1, char *out, int64_t cap,
                  char *where, int64_t where_cap)
{
    char mount[MAX_PATH] = "", path[MAX_PATH] = "", file[3 * MAX_PATH];
    int version = 0;
    const int status = find_group(controller, mount, path, &version);
    if (status != LR_OK)
        return LR_EEND;
    for (; level > 0; level--) {
        char *slash = strrchr(path, '/');
        if (slash == NULL)
            return lr_fail(LR_EEND, "there is no group above");
        *slash = 0;
    }
    snprintf(where, (size_t)where_cap, "%s", *path != 0 ? path : "/");
    snprintf(file, sizeof file, "%s%s/%s", mount, path, version == 2 ? name : name_1);
    if (strstr(path, "/..") != NULL || !read_text(file, out, (size_t)cap))
        return lr_fail(LR_ENOTFOUND, "there is no %s", file);
    return LR_OK;
}

/* The rest of the line that begins with `prefix`, `key` and a space; NULL where there is no such line. */
static const char *find_line(const char *text, const char *prefix, const char *key)
{
    const size_t p = strlen(prefix), k = strlen(key);
    for (const char *at = text; at != NULL; at = strchr(at, '\n') != NULL ? strchr(at, '\n') + 1 : NULL)
        if (strncmp(at, prefix, p) == 0 && strncmp(at + p, key, k) == 0 && at[p + k] == ' ')
            return at + p + k;
    return NULL;
}

/* The number in a group's file or, where key is not empty, in its line for `key`; -1: there is none. Version 1 has two lines for
 * a key: for the group alone and, with "total_", including the groups below it. The latter is what its usage, and version 2,
 * count. */
static int64_t group_number(int level, const char *name, const char *name_1, const char *key, char *where, size_t cap)
{
    char text[MAX_FILE];
    if (lr_group_file("memory", level, name, name_1, text, sizeof text, where, (int64_t)cap) != LR_OK)
        return -1;
    const char *at = text;
    if (*key != 0) {
        at = find_line(text, "total_", key);
        if (at == NULL)
            at = find_line(text, "", key);
        if (at == NULL)
            return -1;
    }
    char *end = NULL;
    errno = 0;
    const long long value = strtoll(at, &end, 10);
    return end == at || errno != 0 || value < 0 || value >= BEYOND_ANY ? -1 : value;
}

static void look_at_groups(lr_memory_bound *bound)
{
    char where[MAX_PATH], text[2];
    for (int level = 0; lr_group_file("memory", level, "", "", text, sizeof text, where, sizeof where) != LR_EEND;
         level++) {
        const int64_t most = group_number(level, "memory.max", "memory.limit_in_bytes", "", where, sizeof where);
        if (most < 0)
            continue;
        const int64_t used = group_number(level, "memory.current", "memory.usage_in_bytes", "", where, sizeof where);
        /* the kernel gives up its caches of files and of their names when memory is short */
        static const char *const reclaimable[] = {"inactive_file", "active_file", "slab_reclaimable"};
        int64_t left = most - used;
        for (size_t i = 0; i < LR_COUNT_OF(reclaimable); i++)
            left += lr_max64(0, group_number(level, "memory.stat", "memory.stat", reclaimable[i], where, sizeof where));
        left = lr_min64(left, most);
        if (lr_max64(0, left) >= bound->left)
            continue;
        bound->left = lr_max64(0, left);
        char size[32];
        size_text(size, sizeof size, (double)most);
        snprintf(bound->what, sizeof bound->what, "the control group %.180s allows %s", where, size);
    }
}

int lr_memory_left_by_group(lr_memory_bound *out)
{
    *out = (lr_memory_bound){.left = NO_LIMIT};
    look_at_groups(out);
    return LR_OK;
}

int lr_memory_left_by_data(lr_memory_bound *out)
{
    *out = (lr_memory_bound){.left = lr_limits_left(LR_LIMIT_DATA)};
    if (out->left == NO_LIMIT)
        return LR_OK;
    out->left = lr_max64(0, out->left - LR_LIMITS_SPARE); /* room for libraries */
    limit_text(out->what, sizeof out->what, LR_LIMIT_DATA);
    return LR_OK;
}

int lr_limits_allow(size_t bytes)
{
    const double now = lr_time();
    if (now - allowance.looked < JUST_NOW && (int64_t)bytes <= allowance.bytes) {
        allowance.bytes -= (int64_t)bytes;
        return LR_OK;
    }
    lr_memory_bound bound, data;
    lr_memory_left_by_group(&bound);
    lr_memory_left_by_data(&data);
    if (data.left < bound.left)
        bound = data;
    if (bound.left >= (int64_t)bytes) {
        allowance.looked = now;
        allowance.bytes = (bound.left - (int64_t)bytes) / 2;
        return LR_OK;
    }
    char size[32];
    size_text(size, sizeof size, (double)bound.left);
    return lr_fail(LR_ENOMEM, "%s, of which %s are left", bound.what, size);
}

/* ---- errors ---------------------------------------------------------------------------------------------------------- */
static void append(char *out, size_t cap, const char *text)
{
    const size_t used = strlen(out);
    snprintf(out + used, cap - used, "%s%s", used == 0 ? "" : ", ", text);
}

static void append_limit(char *out, size_t cap, int kind)
{
    char text[128];
    if (lr_limit(kind) < 0)
        return;
    limit_text(text, sizeof text, kind);
    append(out, cap, text);
}

static void find_reason(int code, char *out, size_t cap)
{
    char text[32], where[256], most[64];
    *out = 0;
    if (code == ENOMEM || code == EAGAIN) { /* EAGAIN: from starting threads and processes */
        append_limit(out, cap, LR_LIMIT_ADDRESSES);
        append_limit(out, cap, LR_LIMIT_DATA);
    }
    if (code == ENOMEM && read_text("/proc/sys/vm/overcommit_memory", text, sizeof text) && *text == '2')
        append(out, cap, "vm.overcommit_memory is 2: the machine promises no more than it has");
    if (code == EAGAIN) {
        append_limit(out, cap, LR_LIMIT_PROCESSES);
        for (int level = 0, status = LR_OK; status != LR_EEND; level++) {
            status = lr_group_file("pids", level, "pids.max", "pids.max", text, sizeof text, where, sizeof where);
            if (status != LR_OK || *text == 'm')
                continue;
            snprintf(most, sizeof most, "pids.max of the control group: %ld", strtol(text, NULL, 10));
            append(out, cap, most);
        }
    }
    if (code == EMFILE)
        append_limit(out, cap, LR_LIMIT_FILES);
    if (code == EFBIG)
        append_limit(out, cap, LR_LIMIT_FILE_SIZE);
}

lr_because lr_limits_because(int code)
{
    lr_because out = {""};
    char limits[256];
    find_reason(code, limits, sizeof limits);
    if (*limits != 0)
        snprintf(out.text, sizeof out.text, " (%s)", limits);
    return out;
}

int lr_limits_fail_start(const char *what, int code)
{
    return lr_fail(LR_EIO, "cannot start %s: %s%s", what, strerror(code), lr_limits_because(code).text);
}

int lr_fail_errno(const char *fmt, ...)
{
    const int code = errno;
    /* Only for threads and processes has EAGAIN to do with a limit, and they call lr_limits_fail_start. */
    const lr_because because = code != EAGAIN ? lr_limits_because(code) : (lr_because){""};
    char what[2048];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return lr_fail(code == ENOENT || code == ENOTDIR ? LR_ENOTFOUND
                   : code == ENOMEM                  ? LR_ENOMEM
                                                     : LR_EIO,
                   "%s: %s%s", what, strerror(code), because.text);
}

/* ---- at the start of the program ------------------------------------------------------------------------------------- */
void lr_limits_prepare(void)
{
    /* A write beyond the largest size then fails with EFBIG, and its error names the file. */
    (void)signal(SIGXFSZ, SIG_IGN);
    /* malloc would reserve 64 MB of addresses for each thread. */
    if (lr_limit(LR_LIMIT_ADDRESSES) >= 0)
        (void)mallopt(M_ARENA_MAX, 1);
    /* Threads get stacks as large as the main thread's limit. Where addresses are limited, or that limit is lower than usual,
     * they get the usual size. */
    struct rlimit stack;
    pthread_attr_t usual;
    if (getrlimit(RLIMIT_STACK, &stack) != 0 || stack.rlim_cur == USUAL_STACK ||
        (stack.rlim_cur > USUAL_STACK && lr_limit(LR_LIMIT_ADDRESSES) < 0))
        return;
    stack.rlim_cur = stack.rlim_max < USUAL_STACK ? stack.rlim_max : USUAL_STACK;
    (void)setrlimit(RLIMIT_STACK, &stack);
    if (pthread_getattr_default_np(&usual) != 0)
        return;
    if (pthread_attr_setstacksize(&usual, USUAL_STACK) == 0)
        (void)pthread_setattr_default_np(&usual);
    (void)pthread_attr_destroy(&usual);
}
