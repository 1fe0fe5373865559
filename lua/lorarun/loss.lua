-- loss.lua: losses over the embeddings of a batch. A loss is a table with a name and a function
--     compute(columns, labels, embeddings) -> tensor of one element
--   columns     one tensor [batch, dim] for each text column, in order: views of embeddings [columns * batch, dim]
--   labels      f32 [batch], or nil where the loss uses none
-- and  positives_only = true  where rows with a score below 0.5 are of no use to it. A recipe may pass a plain function instead.
-- and  stateless = true  where compute does nothing but ops on its arguments: then a step may be tried without values beforehand,
-- and  mean_over_pairs = true  where it is the mean of what each pair gives by itself: then a batch is as good as its parts.
-- All embeddings are unit length when they come here (the trainer normalises where the model does not).
--
-- On several ranks a loss is computed on each rank's own pairs, which is enough where it is a mean over pairs. One that compares
-- pairs with each other says  gather = true:  then each rank gets the embeddings of all ranks, in the order one rank would see.
local ffi = require "ffi"
local ops = require "lorarun.ops"
local tensor = require "lorarun.tensor"
local check = require "lorarun.check"

local loss = {}

--- mean((cos(u, v) - label)^2): sentence-transformers' CosineSimilarityLoss.
function loss.cosine_similarity()
  return { name = "cosine_similarity", needs_labels = true, stateless = true, mean_over_pairs = true, columns = 2,
    compute = function(columns, labels)
      return ops.mse(ops.row_dot(columns[1], columns[2]), labels)
    end }
end

--- Multiple negatives ranking (Henderson et al., 2017): every anchor must rank its own positive above all other positives and all
--- hard negatives of the batch. scores = scale * cos(anchor_i, candidate_j), cross-entropy with label i. Columns: anchor,
--- positive, then any number of hard negatives. options: scale = 20, gather = true: the batch is that of all ranks together; false:
--- each rank takes its negatives from its own pairs.
function loss.multiple_negatives_ranking(options)
  local scale = options and options.scale or 20
  local gather = not (options and options.gather == false)
  return { name = "multiple_negatives_ranking", positives_only = true, stateless = true, columns = 2, more_columns = true,
    gather = gather,
    compute = function(columns, _, embeddings)
      local n = columns[1].shape[1]
      local candidates = ops.rows(embeddings, n, embeddings.shape[1])
      local scores = ops.matmul_nt(columns[1], candidates, scale)
      local index = ffi.new("int32_t[?]", n)
      for i = 0, n - 1 do index[i] = i end
      return ops.cross_entropy(scores, tensor.from(index, { n }, "i32", "labels", embeddings.device))
    end }
end

--- By name, for command lines: "cosine" or "mnr" (or the long names).
function loss.by_name(name)
  if name == "cosine" or name == "cosine_similarity" then return loss.cosine_similarity() end
  if name == "mnr" or name == "multiple_negatives_ranking" then return loss.multiple_negatives_ranking() end
  check.fail("there is no loss '%s'; there are cosine and mnr", tostring(name))
end

return loss
