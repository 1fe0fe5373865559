/* YAML: events end, collections close as often as they open, and their texts are whole. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const int64_t before = fuzz_objects();
    char *text = fuzz_copy(data, size);
    lr_yaml *y = NULL;
    if (lr_yaml_open(&y, text, (int64_t)size, "input") == LR_OK) {
        lr_yaml_event e;
        int status, depth = 0;
        while ((status = lr_yaml_next(y, &e)) == LR_OK) {
            depth += (e.kind == LR_YAML_SEQUENCE || e.kind == LR_YAML_MAPPING) - (e.kind == LR_YAML_END);
            MUST(depth >= 0);
            MUST(e.kind != LR_YAML_SCALAR || e.text[e.length] == 0);
            MUST(e.kind != LR_YAML_ALIAS || e.anchor != NULL);
        }
        MUST(status != LR_EEND || depth == 0);
        lr_yaml_close(y);
    }
    free(text);
    MUST(fuzz_objects() == before);
    return 0;
}
