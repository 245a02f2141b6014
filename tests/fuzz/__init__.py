"""Fuzzing: hostile and broken input for everything that reads what others wrote.

A *target* (`tests.fuzz.target`) is one reader: a strategy that draws inputs, and a check that gives one
to the public reader. An error of the `PahqError` family is a success, and so is a right answer;
everything else is a violation: another exception, a message of several lines, a second of work, a write
outside the output folder, a process, a connection, a pickle, a wrong answer without a word.

====================  ==============================================================================
module                holds
====================  ==============================================================================
`bench`               scratch folders, the guard on what a reader may do, promised errors
`hostile`             hostile values, and valid documents damaged with them
`octets`              files damaged byte by byte
`prompts`, `results`  targets, by what they read
`plans`, `graphs`
`settings`
`commands`
`target`              what a target is, and the list of all
`runner`              many inputs, counted; ``python -m tests.fuzz``
`guided`              the same checks under atheris, guided by coverage
`regressions`         inputs that once failed
====================  ==============================================================================

A new reader (of a checkpoint, say) is a target in a module of its own and an entry in `target.MODULES`.
"""
