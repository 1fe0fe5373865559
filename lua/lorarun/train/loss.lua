-- loss.lua: losses over the embeddings of a batch. A loss is a table with a name and a function
--     compute(columns, labels, embeddings) -> tensor of one element
--   columns     one tensor [batch, dim] for each text column, in order: views of embeddings [columns * batch, dim]
--   labels      f32 [batch], or nil where the loss uses none
-- It may also have
--     positives_only = true    it does not use rows with a score below 0.5
--     stateless = true         compute does nothing but ops on its arguments, so a step may be tried without values beforehand
--     mean_over_pairs = true   it is the mean of one loss for each pair, so a batch may be taken in parts
--     columns = n              how many columns of texts it reads; more_columns = true: it takes more, too
--     in_batch = true          its n columns are compared only with other pairs of the batch: a single pair teaches nothing
--     gather = true            it compares pairs with each other: on several ranks it gets the embeddings of all ranks, in the
--                              order one rank would see. Without it each rank computes the loss of its own pairs, which is
--                              enough for a mean over pairs
--     settings = { ... }       the options it was made with: a run that is resumed with others says so
-- All embeddings have unit length (the trainer normalises where the model does not). A recipe may pass a plain function instead.
local ffi = require "ffi"
local ops = require "lorarun.tensor.ops"
local sorted = require "lorarun.base.sorted"
local tensor = require "lorarun.tensor.tensor"
local check = require "lorarun.base.check"
local options = require "lorarun.base.options"
local suggest = require "lorarun.base.suggest"

local loss = {}

local RANKING = { gather = options.boolean,
  scale = { test = function(v) return options.number.test(v) and v > 0 end, text = "a number above 0" } }

--- mean((cos(u, v) - label)^2): sentence-transformers' CosineSimilarityLoss.
function loss.cosine_similarity(given)
  options.check("lr.loss.cosine_similarity", given, {})
  return { name = "cosine_similarity", needs_labels = true, stateless = true, mean_over_pairs = true, columns = 2,
    compute = function(columns, labels)
      return ops.mse(ops.row_dot(columns[1], columns[2]), labels)
    end }
end

--- Multiple negatives ranking (Henderson et al., 2017): every anchor must rank its own positive above all other positives and all
--- hard negatives of the batch. scores = scale * cos(anchor_i, candidate_j), cross-entropy with label i. Columns: anchor,
--- positive, then any number of hard negatives. options: scale = 20, gather = true: the batch is that of all ranks together; false:
--- each rank takes its negatives from its own pairs. A batch of one pair without hard negatives has a loss of 0, whatever the
--- model.
function loss.multiple_negatives_ranking(given)
  local o = options.check("lr.loss.multiple_negatives_ranking", given, RANKING)
  local scale, gather = o.scale or 20, o.gather ~= false
  return { name = "multiple_negatives_ranking", positives_only = true, stateless = true, columns = 2, more_columns = true,
    in_batch = true, gather = gather, settings = { scale = scale, gather = gather },
    compute = function(columns, _, embeddings)
      local n = columns[1].shape[1]
      local candidates = ops.rows(embeddings, n, embeddings.shape[1])
      local scores = ops.matmul_nt(columns[1], candidates, scale)
      local index = ffi.new("int32_t[?]", n)
      for i = 0, n - 1 do index[i] = i end
      return ops.cross_entropy(scores, tensor.from(index, { n }, "i32", "labels", embeddings.device))
    end }
end

local NAMES = { cosine = "cosine_similarity", cosine_similarity = "cosine_similarity", mnr = "multiple_negatives_ranking",
  multiple_negatives_ranking = "multiple_negatives_ranking" }

--- by_name(name, options): for command lines: "cosine" or "mnr" (or the long names), with the options of that loss.
function loss.by_name(name, given)
  local known = NAMES[name]
  if not known then
    check.fail("there is no loss %s; there are cosine and mnr%s", options.shown(name),
      type(name) == "string" and suggest.did_you_mean(name, sorted.keys(NAMES)) or "")
  end
  return loss[known](given)
end

return loss
