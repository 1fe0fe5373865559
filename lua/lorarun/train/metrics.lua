-- metrics.lua: figures that compare scores with labels: correlation, and how well a threshold separates two classes.
--   pearson(x, y [, n])                        -1 .. 1; nil and the reason where it is undefined: under 2 rows, or x or y constant
--   spearman(x, y [, n])                       the same of the ranks; equal values share their average rank
--   binary(scores, labels [, n])               table, see there
--   threshold_sweep(scores, labels, k [, n])   rows of k thresholds from the lowest score to the highest
-- Inputs are Lua arrays (from 1) or C arrays of numbers (from 0), of which n must be given. A value that is not finite
-- is an error.
--
-- A million rows are ordinary: everything is one radix sort and linear passes over C arrays of doubles, no closure, no
-- table per row, so that the cost is some 0.1 s there and the garbage collector sees a handful of objects.
local ffi = require "ffi"
local bit = require "bit"
local check = require "lorarun.base.check"

local metrics = {}

local band, bnot, rshift, bxor, tobit = bit.band, bit.bnot, bit.rshift, bit.bxor, bit.tobit
local doubles, integers, words = ffi.typeof "double[?]", ffi.typeof "int32_t[?]", ffi.typeof "uint32_t *"
local LOW = ffi.abi "le" and 0 or 1 -- which 32-bit half of a double holds its lowest bits
local RADIX_BITS = 11
local BUCKETS = 2 ^ RADIX_BITS

-- ---- inputs ---------------------------------------------------------------------------------------------------------

-- A copy as doubles, and the number of rows. The copy costs little beside the sort, makes both kinds of array one, and
-- turns -0 into 0, which the sort would tell apart.
local function numbers(values, n, name)
  local first = 0
  if type(values) == "table" then
    if values.dtype then check.fail("%s is a tensor; its values are an array as %s:to_table()", name, name) end
    n = n or #values
    if n > #values then check.fail("%s has %d values, %d are needed", name, #values, n) end
    first = 1
  elseif type(values) ~= "cdata" then
    check.fail("%s is a %s; an array of numbers is needed", name, type(values))
  elseif not n then
    check.fail("%s is a C array: the number of rows must be given", name)
  end
  local copy = doubles(n > 0 and n or 1)
  for i = 0, n - 1 do
    local v = tonumber(values[first + i])
    if not v or v - v ~= 0 then check.fail("%s[%d] is %s, not a finite number", name, first + i, tostring(v)) end
    if v == 0 then v = 0 end
    copy[i] = v
  end
  return copy, n
end

local function pair(x, x_name, y, y_name, n)
  local a, rows = numbers(x, n, x_name)
  local b, others = numbers(y, n, y_name)
  if rows ~= others then check.fail("%s has %d values, %s has %d", x_name, rows, y_name, others) end
  return a, b, rows
end

local function scores_and_labels(scores, labels, n)
  local s, l, rows = pair(scores, "scores", labels, "labels", n)
  if rows == 0 then check.fail("there are no rows to compare scores and labels of") end
  for i = 0, rows - 1 do
    if l[i] ~= 0 and l[i] ~= 1 then check.fail("the label of row %d is %g; classes are 0 and 1", i + 1, l[i]) end
  end
  return s, l, rows
end

-- ---- sorting --------------------------------------------------------------------------------------------------------

-- The indices 0 .. n-1 in ascending order of values; equal values keep their order. A radix sort of the doubles' bits,
-- lowest digit first, in which negative numbers have all bits flipped and others the sign bit, so that bits order as
-- numbers do. A digit that all values share is skipped: the scores of fp32 models have 29 zero bits.
local function sorted_indices(values, n)
  local order, other = integers(n), integers(n)
  local keys = { [0] = integers(n), [1] = integers(n) } -- lower and upper halves
  local lower, upper = keys[0], keys[1]
  local halves = ffi.cast(words, values)
  for i = 0, n - 1 do
    local high = tobit(halves[2 * i + 1 - LOW])
    local low = tobit(halves[2 * i + LOW])
    if high < 0 then
      lower[i], upper[i] = bnot(low), bnot(high)
    else
      lower[i], upper[i] = low, bxor(high, 0x80000000)
    end
    order[i] = i
  end
  local starts = integers(BUCKETS)
  for half = 0, 1 do
    local key = keys[half]
    for shift = 0, 31, RADIX_BITS do
      ffi.fill(starts, ffi.sizeof(starts))
      for i = 0, n - 1 do
        local digit = band(rshift(key[i], shift), BUCKETS - 1)
        starts[digit] = starts[digit] + 1
      end
      if starts[band(rshift(key[0], shift), BUCKETS - 1)] < n then
        local total = 0
        for digit = 0, BUCKETS - 1 do
          local count = starts[digit]
          starts[digit] = total
          total = total + count
        end
        for i = 0, n - 1 do
          local index = order[i]
          local digit = band(rshift(key[index], shift), BUCKETS - 1)
          other[starts[digit]] = index
          starts[digit] = starts[digit] + 1
        end
        order, other = other, order
      end
    end
  end
  return order
end

-- ---- correlation ----------------------------------------------------------------------------------------------------

-- Mean, and the largest distance from it, by which the deviations are divided so that no square overflows or vanishes.
local function mean_and_spread(x, n)
  local sum = 0
  for i = 0, n - 1 do sum = sum + x[i] / n end
  local spread = 0
  for i = 0, n - 1 do
    local distance = math.abs(x[i] - sum)
    if distance > spread then spread = distance end
  end
  return sum, spread
end

-- Why rows have no correlation, or nil where they have one. names: what x and y are called.
local function no_correlation(x, y, n, names)
  if n < 2 then return n == 0 and "there are no rows" or "there is only one row" end
  local function constant(values)
    for i = 1, n - 1 do
      if values[i] ~= values[0] then return false end
    end
    return true
  end
  local function why(values, name)
    return constant(values) and ("all %s are %.6g"):format(name, values[0]) or nil
  end
  return why(y, names and names[2] or "y") or why(x, names and names[1] or "x")
end

-- Pearson's r: the mean product of deviations over the product of their standard deviations (Pearson, 1895). Not of constants.
local function correlation(x, y, n)
  local x_mean, x_spread = mean_and_spread(x, n)
  local y_mean, y_spread = mean_and_spread(y, n)
  local xx, yy, xy = 0, 0, 0
  for i = 0, n - 1 do
    local dx, dy = (x[i] - x_mean) / x_spread, (y[i] - y_mean) / y_spread
    xx = xx + dx * dx
    yy = yy + dy * dy
    xy = xy + dx * dy
  end
  local r = xy / math.sqrt(xx) / math.sqrt(yy)
  return math.max(-1, math.min(1, r))
end

-- Ranks from 1; equal values get the mean of the ranks they cover.
local function ranks(x, n)
  local order, out = sorted_indices(x, n), doubles(n)
  local first = 0
  while first < n do
    local value, last = x[order[first]], first
    while last + 1 < n and x[order[last + 1]] == value do last = last + 1 end
    local rank = (first + last) / 2 + 1
    for i = first, last do out[order[i]] = rank end
    first = last + 1
  end
  return out
end

--- pearson(x, y [, n [, names]]): the linear correlation; nil and the reason, a text, where there is none. names: what the reason
--- calls x and y, { "similarities", "labels" }.
function metrics.pearson(x, y, n, names)
  local a, b, rows = pair(x, "x", y, "y", n)
  local why = no_correlation(a, b, rows, names)
  if why then return nil, why end
  return correlation(a, b, rows)
end

--- spearman(x, y [, n [, names]]): the correlation of the ranks (Spearman, 1904); nil and the reason where there is none.
function metrics.spearman(x, y, n, names)
  local a, b, rows = pair(x, "x", y, "y", n)
  local why = no_correlation(a, b, rows, names)
  if why then return nil, why end
  return correlation(ranks(a, rows), ranks(b, rows), rows)
end

-- ---- two classes ----------------------------------------------------------------------------------------------------

local function precision_recall_f1(tp, fp, fn)
  local precision = tp + fp > 0 and tp / (tp + fp) or 0
  local recall = tp + fn > 0 and tp / (tp + fn) or 0
  return precision, recall, tp > 0 and 2 * precision * recall / (precision + recall) or 0
end

--- binary(scores, labels [, n]): a row is taken for class 1 where its score >= a threshold. Returns
---   accuracy, accuracy_threshold     the best accuracy, and where
---   f1, precision, recall, f1_threshold, confusion = { tp, fp, tn, fn }     at the threshold of the best F1
---   average_precision = pr_auc       sum of precision times the step in recall, as scikit-learn has it
---   roc_auc                          the share of (1, 0) pairs of rows in the right order, ties counting half
--- The areas are nil where all labels are alike; undefined = { name = reason } then says so, and is empty else. Precision, recall
--- and F1 are 0 where no row is of class 1, as in scikit-learn. Thresholds lie midway between neighbouring different scores; of
--- equally good ones the highest is taken. Where all scores are equal, the only threshold is that score.
function metrics.binary(scores, labels, n)
  local s, l, rows = scores_and_labels(scores, labels, n)
  local order = sorted_indices(s, rows)
  local positives = 0
  for i = 0, rows - 1 do positives = positives + l[i] end
  local negatives = rows - positives

  local tp, fp = 0, 0
  local best_accuracy, accuracy_threshold, best_f1, f1_threshold, best_tp, best_fp = -1, nil, -1, nil, 0, 0
  local precision_sum, area = 0, 0
  local place = rows - 1
  while place >= 0 do -- one turn for each different score, from the highest down
    local score = s[order[place]]
    local new_tp, new_fp = 0, 0
    while place >= 0 and s[order[place]] == score do
      local label = l[order[place]]
      new_tp, new_fp = new_tp + label, new_fp + 1 - label
      place = place - 1
    end
    area = area + new_fp * (tp + new_tp / 2)
    tp, fp = tp + new_tp, fp + new_fp
    precision_sum = precision_sum + new_tp * (tp / (tp + fp))
    if place >= 0 or not f1_threshold then
      local threshold = score
      if place >= 0 then
        local below = s[order[place]]
        local middle = score / 2 + below / 2
        if middle > below then threshold = middle end -- no double lies between some neighbours
      end
      local accuracy = (tp + negatives - fp) / rows
      if accuracy > best_accuracy then best_accuracy, accuracy_threshold = accuracy, threshold end
      local _, _, f1 = precision_recall_f1(tp, fp, positives - tp)
      if f1 > best_f1 then best_f1, f1_threshold, best_tp, best_fp = f1, threshold, tp, fp end
    end
  end

  local precision, recall, f1 = precision_recall_f1(best_tp, best_fp, positives - best_tp)
  local both = positives > 0 and negatives > 0
  local average_precision = both and precision_sum / positives or nil
  local undefined = {}
  if not both then
    for _, name in ipairs { "average_precision", "pr_auc", "roc_auc" } do undefined[name] = ("all labels are %d"):format(l[0]) end
  end
  return {
    undefined = undefined,
    accuracy = best_accuracy,
    accuracy_threshold = accuracy_threshold,
    f1 = f1,
    f1_threshold = f1_threshold,
    precision = precision,
    recall = recall,
    average_precision = average_precision,
    pr_auc = average_precision,
    roc_auc = both and area / positives / negatives or nil,
    confusion = { tp = best_tp, fp = best_fp, tn = negatives - best_fp, fn = positives - best_tp },
  }
end

--- threshold_sweep(scores, labels, k [, n]): what k evenly spaced thresholds from the lowest score to the highest give,
--- in ascending order: rows { threshold, accuracy, precision, recall, f1, tp, fp, tn, fn }. One row where all scores
--- are equal.
function metrics.threshold_sweep(scores, labels, k, n)
  if type(k) ~= "number" or k < 2 or k ~= math.floor(k) then
    check.fail("a sweep needs a whole number of thresholds, 2 or more, not %s", tostring(k))
  end
  local s, l, rows = scores_and_labels(scores, labels, n)
  local order = sorted_indices(s, rows)
  local positives = 0
  for i = 0, rows - 1 do positives = positives + l[i] end
  local low, high = s[order[0]], s[order[rows - 1]]
  if low == high then k = 1 end

  local result = {}
  local place, tp, fp = 0, positives, rows - positives -- all rows from `place` upwards reach the threshold
  for step = 0, k - 1 do
    local threshold = low
    if step > 0 then
      local part = step / (k - 1)
      threshold = part == 1 and high or low * (1 - part) + high * part
    end
    while s[order[place]] < threshold do
      local label = l[order[place]]
      tp, fp = tp - label, fp - 1 + label
      place = place + 1
    end
    local fn, tn = positives - tp, rows - positives - fp
    local precision, recall, f1 = precision_recall_f1(tp, fp, fn)
    result[step + 1] = {
      threshold = threshold, accuracy = (tp + tn) / rows, precision = precision, recall = recall, f1 = f1,
      tp = tp, fp = fp, tn = tn, fn = fn,
    }
  end
  return result
end

return metrics
