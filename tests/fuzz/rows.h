/* rows.h: JSON Lines and CSV. Rows that are accepted can be read again, to the same bytes, which are UTF-8. The first byte of
 * the input selects the options. */
#include "fuzz.h"
#include "text/unicode.h"

static void check_text(const lr_dataset *d, int64_t row, int column)
{
    int64_t size = -1, again = -1;
    MUST(lr_dataset_text(d, row, column, NULL, 0, &size) == LR_OK && size >= 0);
    char *text = malloc((size_t)size + 1);
    MUST(text != NULL && lr_dataset_text(d, row, column, text, size, &again) == LR_OK && again == size);
    bool ascii;
    MUST(lr_utf8_check(text, (size_t)size, &ascii) == (size_t)size);
    free(text);
}

static void check_rows(const lr_dataset *d, bool numbers)
{
    const int64_t rows = lr_dataset_rows(d);
    double *values = calloc((size_t)rows + 1, sizeof *values);
    uint64_t *hashes = calloc((size_t)rows + 1, sizeof *hashes);
    MUST(values != NULL && hashes != NULL);
    MUST(!numbers || lr_dataset_numbers(d, 1, values) == LR_OK);
    MUST(lr_dataset_hashes(d, 0, hashes) == LR_OK);
    for (int64_t i = 0; i < rows; i++) {
        MUST(values[i] - values[i] == 0); /* finite */
        MUST(lr_dataset_line(d, i) > (i > 0 ? lr_dataset_line(d, i - 1) : 0));
        check_text(d, i, 0);
    }
    free(values);
    free(hashes);
}

static int fuzz_rows(const char *suffix, const uint8_t *data, size_t size)
{
    static const char *const columns[] = {"a", "score"};
    static const int kinds[] = {LR_COLUMN_TEXT, LR_COLUMN_NUMBER};
    if (size < 1)
        return -1;
    const int64_t before = fuzz_objects();
    const char *path = fuzz_file(suffix, data + 1, size - 1);
    char *names = NULL;
    int64_t count = 0;
    if (lr_dataset_peek(path, &names, &count) == LR_OK)
        lr_free(names);
    const bool numbers = data[0] & 1;
    lr_dataset *d = NULL;
    if (lr_dataset_open(&d, path, columns, kinds, numbers ? 2 : 1, data[0] & 2 ? LR_BAD_ROW_SKIP : LR_BAD_ROW_ERROR,
                        data[0] >> 2 & 3) == LR_OK) {
        check_rows(d, numbers);
        lr_dataset_close(d);
    }
    MUST(fuzz_objects() == before);
    return 0;
}
