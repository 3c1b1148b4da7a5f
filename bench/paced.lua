-- Requests at random moments, RATE of them a second, for wrk; the lines before these name the rate and
-- the request. wrk asks for the text of a request when a connection is free: it is given late enough.
-- wrk's own delay() counts whole milliseconds, and so makes bursts.

local ffi = require "ffi"
ffi.cdef[[
  typedef struct { long s, ns; } moment;
  int clock_gettime(int clock, moment *now);
  int clock_nanosleep(int clock, int flags, const moment *until, moment *left);
  int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
]]
local MONOTONIC, ABSOLUTE, SET_TIMER_SLACK = 1, 1, 29
local now, till, due, text = ffi.new("moment"), ffi.new("moment"), 0, nil

function init()
  ffi.C.prctl(SET_TIMER_SLACK, 1, 0, 0, 0)
  math.randomseed(7)
  text = wrk.format()
end

function request()
  ffi.C.clock_gettime(MONOTONIC, now)
  local at = tonumber(now.s) + tonumber(now.ns) * 1e-9
  due = due - math.log(1 - math.random()) / RATE
  if due > at then
    till.s = math.floor(due)
    till.ns = (due - math.floor(due)) * 1e9
    ffi.C.clock_nanosleep(MONOTONIC, ABSOLUTE, till, nil)
  else
    due = at -- what is late while wrk reads answers, or has no processor, makes no burst afterwards
  end
  return text
end
