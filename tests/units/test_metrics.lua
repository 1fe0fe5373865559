-- metrics: compared with SciPy, scikit-learn and sentence-transformers (tests/golden/metrics.json); then kinds of input, errors,
-- and large inputs compared with a direct count.
local ffi = require "ffi"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local metrics = require "lorarun.train.metrics"

local path = fs.join(os.getenv "LORARUN_TESTS", "golden", "metrics.json")
local golden = json.decode(fs.read(path), path)

local function doubles(values)
  local copy = ffi.new("double[?]", math.max(#values, 1))
  for i, v in ipairs(values) do copy[i - 1] = v end
  return copy
end

-- null in the file, nil here
local function agrees(value, expected, what)
  if expected == json.null then check.equal(value, nil, what) return end
  check.that(value, what .. " is nil, expected " .. tostring(expected))
  check.near(value, expected, 1e-12, what)
end

for _, case in ipairs(golden.correlation) do
  test("correlation: " .. case.name, function()
    -- allows for SciPy's own rounding when the mean is 1e8 times the spread
    local tolerance = case.name == "far from zero" and 1e-8 or 1e-12
    for _, name in ipairs { "pearson", "spearman" } do
      local r, expected = metrics[name](case.x, case.y), case[name]
      if expected == json.null then
        check.equal(r, nil, name)
      else
        check.near(r, expected, tolerance, name)
        check.equal(metrics[name](doubles(case.x), doubles(case.y), #case.x), r, name .. " of C arrays")
      end
    end
  end)
end

for _, case in ipairs(golden.binary) do
  test("binary: " .. case.name, function()
    for _, r in ipairs { metrics.binary(case.scores, case.labels),
                         metrics.binary(doubles(case.scores), doubles(case.labels), #case.scores) } do
      for _, name in ipairs { "accuracy", "accuracy_threshold", "f1", "f1_threshold", "precision", "recall",
                              "average_precision", "roc_auc" } do
        agrees(r[name], case[name], name)
      end
      agrees(r.pr_auc, case.average_precision, "pr_auc")
      for name, count in pairs(case.confusion) do check.equal(r.confusion[name], count, name) end
    end
  end)
end

for _, case in ipairs(golden.sweep) do
  test("threshold_sweep: " .. case.name, function()
    local rows = metrics.threshold_sweep(case.scores, case.labels, #case.rows)
    check.equal(#rows, #case.rows, "rows")
    for i, expected in ipairs(case.rows) do
      for name, value in pairs(expected) do agrees(rows[i][name], value, name .. " of row " .. i) end
    end
  end)
end

test("the best thresholds give the figures that are reported with them", function()
  local case = golden.binary[3]
  check.equal(case.name, "ties")
  local r = metrics.binary(case.scores, case.labels)
  local tp, fp, right = 0, 0, 0
  for i, score in ipairs(case.scores) do
    if score >= r.f1_threshold then
      if case.labels[i] == 1 then tp = tp + 1 else fp = fp + 1 end
    end
    if (score >= r.accuracy_threshold) == (case.labels[i] == 1) then right = right + 1 end
  end
  check.equal(r.confusion.tp, tp, "tp")
  check.equal(r.confusion.fp, fp, "fp")
  check.near(r.accuracy, right / #case.scores, 1e-15, "accuracy")
end)

test("neighbouring doubles with no number between them", function()
  local low, high = 1, 1 + 2 ^ -52
  local r = metrics.binary({ high, low }, { 1, 0 })
  check.equal(r.accuracy, 1, "accuracy")
  check.that(r.accuracy_threshold > low and r.accuracy_threshold <= high, "the threshold does not separate them")
end)

test("a figure that is undefined is nil, with the reason", function()
  for _, name in ipairs { "pearson", "spearman" } do
    for _, case in ipairs {
      { {}, {}, "there are no rows" }, { { 1 }, { 2 }, "there is only one row" },
      { { 0.1, 0.1, 0.1 }, { 1, 2, 3 }, "all similarities are 0.1" }, { { 1, 2, 3 }, { 1, 1, 1 }, "all labels are 1" },
      { { 7, 7 }, { 0, 0 }, "all labels are 0" } } do -- of the two reasons, labels are the one that a user can change
      local r, why = metrics[name](case[1], case[2], nil, { "similarities", "labels" })
      check.equal(r, nil, name)
      check.equal(why, case[3], name)
      check.equal(select("#", metrics[name]({ 1, 2 }, { 2, 1 })), 1, "values of one that exists")
    end
    check.equal((select(2, metrics[name]({ 3, 3 }, { 1, 2 }))), "all x are 3")
  end
  local r = metrics.binary({ 0.1, 0.2 }, { 1, 1 })
  check.equal(r.roc_auc, nil)
  for _, name in ipairs { "roc_auc", "pr_auc", "average_precision" } do
    check.equal(r.undefined[name], "all labels are 1", name)
  end
  check.equal(next(metrics.binary({ 0.1, 0.2 }, { 0, 1 }).undefined), nil)
end)

test("a sweep over equal scores is one row", function()
  local rows = metrics.threshold_sweep({ 0.5, 0.5 }, { 1, 0 }, 5)
  check.equal(#rows, 1)
  check.equal(rows[1].tp, 1)
  check.equal(rows[1].fp, 1)
end)

test("n limits the rows", function()
  check.near(metrics.pearson({ 1, 2, 9 }, { 1, 2, -5 }, 2), 1, 1e-15)
end)

test("bad input names the value and its place", function()
  local nan = 0 / 0
  check.raises("x[2] is nan", metrics.pearson, { 1, math.abs(nan), 3 }, { 1, 2, 3 })
  check.raises("y[0] is", metrics.spearman, doubles { 1, 2 }, doubles { nan, 2 }, 2)
  check.raises("scores[1] is inf", metrics.binary, { math.huge, 1 }, { 0, 1 })
  check.raises("label of row 2 is 0.5", metrics.binary, { 1, 2 }, { 0, 0.5 })
  check.raises("no rows", metrics.binary, {}, {})
  check.raises("x has 2 values, y has 3", metrics.pearson, { 1, 2 }, { 1, 2, 3 })
  check.raises("4 are needed", metrics.pearson, { 1, 2 }, { 1, 2 }, 4)
  check.raises("number of rows must be given", metrics.pearson, doubles { 1 }, doubles { 1 })
  check.raises("x is a string", metrics.pearson, "1", { 1 })
  check.raises("whole number of thresholds", metrics.threshold_sweep, { 1, 2 }, { 0, 1 }, 1)
  check.raises("whole number of thresholds", metrics.threshold_sweep, { 1, 2 }, { 0, 1 }, 2.5)
end)

test("many rows: AUC and rank correlation equal those of a direct count", function()
  -- Scores on a grid of 64 values, so that counting per value is exact and every rule for ties is used.
  local n, grid = 20000, 64
  local scores, labels = ffi.new("double[?]", n), ffi.new("double[?]", n)
  local count = { [0] = {}, [1] = {} }
  for v = 0, grid - 1 do count[0][v], count[1][v] = 0, 0 end
  local state = 12345
  for i = 0, n - 1 do
    state = (state * 16807) % 2147483647
    local label = state % 3 == 0 and 1 or 0
    state = (state * 16807) % 2147483647
    local v = math.floor(state / 2147483647 * (grid - 12)) + label * 12
    scores[i], labels[i] = (v - grid / 2) / 7, label
    count[label][v] = count[label][v] + 1
  end
  local ordered, below, positives, negatives = 0, 0, 0, 0
  for v = 0, grid - 1 do
    ordered = ordered + count[1][v] * (below + count[0][v] / 2)
    below = below + count[0][v]
    positives, negatives = positives + count[1][v], negatives + count[0][v]
  end
  local r = metrics.binary(scores, labels, n)
  check.near(r.roc_auc, ordered / positives / negatives, 1e-12, "roc_auc")
  -- The ranks of a two-valued column are linear in it, and those of the scores are monotone in them.
  local ranks, first = {}, 0
  for v = 0, grid - 1 do
    local here = count[0][v] + count[1][v]
    ranks[v] = first + (here + 1) / 2
    first = first + here
  end
  local ranked = ffi.new("double[?]", n)
  for i = 0, n - 1 do ranked[i] = ranks[math.floor(scores[i] * 7 + grid / 2 + 0.5)] end
  check.near(metrics.spearman(scores, labels, n), metrics.pearson(ranked, labels, n), 1e-12, "spearman")
  local rows = metrics.threshold_sweep(scores, labels, 101, n)
  check.equal(rows[1].tp, positives, "tp at the lowest threshold")
  check.equal(rows[1].fp, negatives, "fp at the lowest threshold")
  for _, row in ipairs(rows) do check.equal(row.tp + row.fp + row.tn + row.fn, n, "rows counted") end
end)
