/* normalizer.c: the normalizers of a tokenizer.json, in a row: reading them, and running one after the other. What each kind
 * does is in normalizer_steps.c. */
#include "text/text.h"
#include <string.h>

struct lr_normalizer_step {
    const lr_normalizer_kind *kind;
    void *settings; /* kind->size bytes */
};

static const lr_spec_kind sequence = {.type = "Sequence", .keys = {"normalizers"}};

/* Add a kind here and describe it in normalizer_steps.c or in a file of its own. The order counts for parts without a "type". */
static const lr_spec_kind *const kinds[] = {
    &lr_normalizer_bert.kind,      &lr_normalizer_bert_short.kind,
    &lr_normalizer_strip.kind,     &sequence,
    &lr_normalizer_replace.kind,   &lr_normalizer_prepend.kind,
    &lr_normalizer_nfc.kind,       &lr_normalizer_nfd.kind,
    &lr_normalizer_nfkc.kind,      &lr_normalizer_nfkd.kind,
    &lr_normalizer_lowercase.kind, &lr_normalizer_strip_accents.kind,
};

static int load_step(lr_normalizer *n, const lr_normalizer_kind *kind, const lr_place *at, const lr_json_node *spec)
{
    if (n->count == LR_TEXT_STEPS)
        return lr_spec_unsupported(at, "more than %d normalizers are not supported", LR_TEXT_STEPS);
    const int status = lr_reserve((void **)&n->steps, &n->cap, n->count + 1, sizeof n->steps[0]);
    if (status != LR_OK)
        return status;
    lr_normalizer_step *s = &n->steps[n->count++];
    *s = (lr_normalizer_step){kind, NULL};
    if (kind->size == 0)
        return LR_OK;
    s->settings = lr_calloc(1, kind->size);
    if (s->settings == NULL)
        return LR_ENOMEM;
    return kind->load == NULL ? LR_OK : kind->load(s->settings, at, spec);
}

static int load(void *normalizer, const lr_place *at, const lr_json_node *spec)
{
    const lr_spec_kind *kind = NULL;
    int status = lr_spec_depth(at);
    if (status == LR_OK)
        status = lr_spec_kind_of(at, spec, kinds, LR_COUNT_OF(kinds), "normalizer", &kind);
    if (status != LR_OK)
        return status;
    return kind == &sequence ? lr_spec_each(at, spec, "normalizers", load, normalizer)
                             : load_step(normalizer, (const lr_normalizer_kind *)kind, at, spec);
}

int lr_normalizer_load(lr_normalizer *n, const lr_place *at, const lr_json_node *spec)
{
    n->place = lr_spec_describe(at);
    return n->place == NULL ? LR_ENOMEM : load(n, at, spec);
}

void lr_normalizer_free(lr_normalizer *n)
{
    for (size_t i = 0; i < n->count; i++) {
        const lr_normalizer_step *s = &n->steps[i];
        if (s->settings != NULL && s->kind->free != NULL)
            s->kind->free(s->settings);
        lr_free(s->settings);
    }
    lr_free(n->steps);
    lr_free(n->place);
    *n = (lr_normalizer){0};
}

int lr_normalizer_run(const lr_normalizer *n, lr_text_work *work, const char **text, size_t *size)
{
    lr_passage p = {.work = work, .text = *text, .size = *size, .original = *size, .place = n->place};
    for (size_t i = 0; i < n->count && p.size > 0; i++) {
        int status = n->steps[i].kind->run(n->steps[i].settings, &p);
        if (status == LR_OK)
            status = lr_passage_check_growth(&p, p.size);
        if (status != LR_OK)
            return status;
    }
    *text = p.text;
    *size = p.size;
    return LR_OK;
}
