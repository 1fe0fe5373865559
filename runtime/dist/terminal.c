/* terminal.c: the width of the terminal of a file descriptor. The output of a launched rank reaches the terminal through the
 * launcher, which tells the rank the width. */
#include "dist/rank.h"
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { USUAL_WIDTH = 80 };

int lr_terminal_width(int fd)
{
    const int launchers = lr_rank_terminal_width(fd);
    if (launchers >= 0)
        return launchers;
    if (!isatty(fd))
        return 0;
    struct winsize size;
    if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        return size.ws_col;
    const char *columns = getenv("COLUMNS"); /* serial lines and some pseudo-terminals have no size */
    const long width = columns != NULL ? strtol(columns, NULL, 10) : 0;
    return width > 0 && width < 10000 ? (int)width : USUAL_WIDTH;
}
