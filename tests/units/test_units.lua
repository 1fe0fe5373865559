-- Numbers as people read them.
local units = require "lorarun.base.units"

test("units: bytes, counts and seconds", function()
  check.equal(units.size(0), "0 B")
  check.equal(units.size(999), "999 B")
  check.equal(units.size(1234567), "1.2 MB")
  check.equal(units.size(5e15), "5000.0 TB")
  check.equal(units.gib(3 * 2 ^ 29), "1.5 GiB")
  check.equal(units.count(1704039), "1,704,039")
  check.equal(units.count(12), "12")
  check.equal(units.duration(59.6), "1:00")
  check.equal(units.duration(3723), "1:02:03")
end)
