/* data_files.h: files for the tests of data sets: a temporary folder that is gone when the program ends. */
#ifndef DATA_FILES_H
#define DATA_FILES_H

#include "lr_test.h"
#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

static char data_folder[512];

static int data_remove(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static void data_cleanup(void)
{
    nftw(data_folder, data_remove, 16, FTW_DEPTH | FTW_PHYS);
}

/* Path of a file in the temporary folder; valid until the eighth next call. */
static const char *data_path(const char *name)
{
    static char paths[8][1024];
    static int next;
    if (data_folder[0] == 0) {
        const char *tmp = getenv("TMPDIR");
        snprintf(data_folder, sizeof data_folder, "%s/lorarun-data-XXXXXX", tmp != NULL && *tmp ? tmp : "/tmp");
        if (mkdtemp(data_folder) == NULL) {
            perror(data_folder);
            exit(1);
        }
        atexit(data_cleanup);
    }
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", data_folder, name);
    return path;
}

static const char *data_write(const char *name, const char *bytes, size_t size)
{
    const char *path = data_path(name);
    FILE *f = fopen(path, "wb");
    if (f == NULL || fwrite(bytes, 1, size, f) != size || fclose(f) != 0) {
        perror(path);
        exit(1);
    }
    return path;
}

static const char *data_text(const char *name, const char *text)
{
    return data_write(name, text, strlen(text));
}

#endif
