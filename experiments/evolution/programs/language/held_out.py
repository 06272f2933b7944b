"""Programs that are never trained on, written by hand: what is learned is measured on them."""

_ONE = """
add 7
times 3
modulo 4
keep_above 6
keep_below 4
without 5
rotate 3
take 5
drop 3
every 3
push 9
append 2
count 8
maxima
fold
"""

_TWO = """
reverse | add 3
sort | reverse
reverse | sums
sums | reverse
unique | sort
unique | length
keep_even | sum
keep_odd | sum
keep_odd | length
keep_above 4 | length
keep_below 3 | length
keep_even | max
keep_odd | min
sort | differences
differences | sum
differences | unique
square | sum
square | reverse
halve | sort
halve | sums
complement | sort
complement | fold
times 2 | keep_above 5
times 4 | add 1
times 7 | reverse
add 5 | sort
add 1 | keep_even
modulo 3 | sum
modulo 2 | sums
modulo 5 | unique
take 3 | sum
take 2 | max
take 4 | reverse
drop 2 | sum
drop 1 | max
drop 4 | reverse
rotate 1 | differences
rotate 2 | fold
swap | reverse
swap | sums
swap | drop 1
mirror | sums
mirror | differences
push 0 | differences
push 5 | sort
append 0 | reverse
append 7 | maxima
every 2 | reverse
every 2 | sum
every 3 | max
maxima | reverse
maxima | unique
maxima | sum
reverse | maxima
fold | sort
fold | max
without 0 | length
without 9 | reverse
without 3 | sort
sum | range
length | range
max | range
head | repeat 4
last | repeat 3
min | repeat 5
head | times 3
last | complement
max | square
sum | halve
sum | modulo 3
length | modulo 2
count 4 | repeat 6
"""

_THREE = """
reverse | take 3 | sort
reverse | take 2 | sum
reverse | drop 1 | reverse
sort | take 3 | sum
sort | drop 2 | reverse
sort | reverse | take 2
sort | take 2 | sum
sort | differences | max
sort | unique | fold
sort | unique | differences
unique | reverse | add 1
unique | sort | reverse
unique | sum | range
keep_even | reverse | sums
keep_even | halve | sum
keep_even | halve | sort
keep_odd | add 1 | halve
keep_odd | sort | reverse
keep_odd | square | sum
keep_above 2 | keep_below 7 | length
keep_above 3 | reverse | differences
keep_above 5 | add 5 | reverse
keep_below 6 | sums | reverse
keep_below 5 | times 2 | sort
add 2 | times 3 | reverse
add 4 | keep_even | length
add 9 | differences | reverse
times 3 | sort | take 4
times 6 | add 5 | sums
times 8 | unique | sort
complement | reverse | sums
complement | keep_above 4 | sum
complement | maxima | reverse
square | sort | unique
square | keep_above 3 | length
square | add 1 | fold
halve | unique | reverse
halve | complement | rotate 2
halve | differences | sort
modulo 3 | sums | reverse
modulo 4 | keep_above 0 | length
modulo 2 | differences | sum
rotate 1 | swap | reverse
rotate 2 | take 3 | reverse
rotate 3 | sums | fold
rotate 5 | drop 2 | sort
take 4 | mirror | sums
take 3 | mirror | add 2
take 5 | sort | differences
take 6 | keep_odd | max
drop 1 | mirror | take 5
drop 2 | unique | sum
drop 3 | sums | reverse
every 2 | sort | sums
every 2 | add 6 | mirror
every 3 | reverse | append 1
swap | differences | reverse
swap | every 2 | sum
swap | take 4 | maxima
mirror | every 2 | sums
mirror | rotate 3 | take 6
push 1 | sums | reverse
push 8 | maxima | differences
push 3 | fold | drop 1
append 6 | swap | reverse
append 4 | differences | add 5
append 9 | sort | every 2
sums | keep_even | length
sums | differences | sums
sums | maxima | reverse
differences | keep_odd | sort
differences | complement | sum
differences | sums | sort
maxima | unique | length
maxima | differences | sum
fold | take 3 | sum
fold | unique | sort
fold | keep_below 5 | reverse
without 1 | sums | reverse
without 7 | unique | length
without 2 | sort | take 4
sum | range | reverse
max | range | sums
length | range | keep_odd
head | range | reverse
last | add 4 | repeat 3
min | complement | range
max | halve | repeat 7
sum | complement | repeat 2
head | square | add 3
count 0 | times 4 | add 2
length | times 3 | range
"""

_FOUR = """
reverse | sort | take 3 | fold
reverse | take 4 | sums | reverse
reverse | drop 2 | unique | sum
reverse | differences | keep_even | length
sort | unique | reverse | take 3
sort | drop 1 | reverse | drop 1
sort | reverse | every 2 | sum
sort | differences | unique | sort
sort | take 4 | mirror | differences
unique | sort | differences | sum
unique | add 5 | sort | take 3
unique | keep_even | reverse | sums
keep_even | sort | reverse | halve
keep_even | unique | length | range
keep_even | times 3 | sums | reverse
keep_odd | add 3 | sort | differences
keep_odd | complement | reverse | push 1
keep_odd | take 2 | sum | repeat 5
keep_above 1 | keep_below 8 | sort | reverse
keep_above 4 | differences | add 2 | reverse
keep_above 6 | length | range | complement
keep_below 7 | unique | sums | maxima
keep_below 4 | append 5 | reverse | sums
add 1 | keep_odd | sort | unique
add 8 | modulo 3 | sums | reverse
add 6 | reverse | take 5 | maxima
times 3 | add 1 | keep_above 4 | sort
times 9 | reverse | swap | drop 1
times 2 | sums | unique | length
complement | sort | take 2 | sum
complement | every 2 | mirror | add 1
complement | keep_even | halve | sum
square | differences | reverse | take 4
square | unique | sort | drop 1
square | modulo 3 | sums | sort
halve | sort | unique | sum
halve | swap | sums | reverse
halve | push 9 | differences | fold
modulo 4 | sort | reverse | sums
modulo 5 | add 2 | unique | reverse
modulo 2 | reverse | sums | fold
rotate 1 | take 4 | reverse | mirror
rotate 2 | keep_odd | sums | sum
rotate 4 | differences | square | sort
rotate 3 | drop 1 | maxima | add 4
take 5 | drop 2 | reverse | add 7
take 3 | sort | mirror | sums
take 6 | swap | fold | keep_even
take 4 | add 3 | keep_below 6 | sum
drop 1 | reverse | drop 1 | sort
drop 2 | sums | differences | reverse
drop 3 | push 4 | sort | differences
drop 1 | every 2 | times 7 | sum
every 2 | reverse | differences | complement
every 3 | add 2 | square | reverse
every 2 | sort | max | range
swap | rotate 1 | sums | take 5
swap | keep_above 2 | reverse | append 6
swap | differences | halve | max
mirror | sort | every 2 | differences
mirror | drop 3 | sums | modulo 4
push 2 | reverse | sums | reverse
push 7 | unique | sort | take 5
append 3 | sums | keep_odd | reverse
append 8 | swap | fold | reverse
sums | keep_above 5 | unique | sort
sums | reverse | differences | sum
differences | keep_below 5 | sort | length
differences | maxima | unique | reverse
maxima | reverse | add 2 | sums
maxima | complement | unique | sum
fold | sums | sort | reverse
fold | keep_even | unique | sum
without 4 | reverse | sums | swap
without 6 | add 4 | sort | every 2
without 8 | take 3 | max | range
sum | add 3 | range | sums
sum | halve | range | mirror
length | complement | range | keep_even
max | range | square | reverse
min | add 2 | repeat 4 | sums
head | complement | range | fold
last | times 2 | range | keep_above 3
count 1 | add 5 | range | differences
max | modulo 4 | add 1 | repeat 3
keep_even | max | range | sum
"""

HELD_OUT = tuple(line for part in (_ONE, _TWO, _THREE, _FOUR) for line in part.split("\n") if line)
"""Their texts, of one operation, then of two, of three, and of four; no two do the same."""
