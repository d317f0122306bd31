"""Completion in bash and zsh: sub-commands, `with`, named configs and settings."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

SHELLS = ("bash", "zsh")

_SCRIPT = string.Template("""\
# Words of `python -m $program` and `das-$program`, for bash and zsh. Made by `completion`; source it.
[ -n "$${ZSH_VERSION-}" ] && autoload -Uz bashcompinit && bashcompinit
_das_$program() {
  local first=$${1:-1} cur=$${COMP_WORDS[COMP_CWORD]} words command=$main i
  for ((i = first; i < COMP_CWORD; i++)); do
    [ "$${COMP_WORDS[i]}" = with ] && break
  done
  if ((i < COMP_CWORD)); then
    ((i > first)) && command=$${COMP_WORDS[first]}
    case $$cur in =*) return ;; esac
    [ "$${COMP_WORDS[COMP_CWORD-1]}" = "=" ] && return
    case $$command in
$cases
    esac
    [[ " $$(compgen -W "$$words" -- "$$cur" | tr '\\n' ' ')" == *[!=]" "* ]] || compopt -o nospace 2>/dev/null
  elif ((COMP_CWORD == first)); then
    words="$commands with print_config completion --help"
  else
    words="with print_config --help"
  fi
  COMPREPLY=($$(compgen -W "$$words" -- "$$cur"))
}
_das_python() {
  local module=$${COMP_WORDS[2]##*.}
  [ "$${COMP_WORDS[1]}" = -m ] && ((COMP_CWORD > 2)) && type "_das_$$module" >/dev/null 2>&1 && "_das_$$module" 3
}
complete -o bashdefault -o default -F _das_$program das-$program
complete -o bashdefault -o default -F _das_python python python3
""")


def script(program: str, main: str, words: Mapping[str, Sequence[str]]) -> str:
    """Return the script to source.

    Args:
        program: `agents` or `adapt`.
        main: The sub-command that runs if none is given.
        words: The words that each sub-command accepts after `with`.
    """
    cases = "\n".join(f'      {name}) words="{" ".join(known)}" ;;' for name, known in words.items())
    return _SCRIPT.substitute(program=program, main=main, commands=" ".join(words), cases=cases)
