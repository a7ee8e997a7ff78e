# rbcl ships no types; `protocols.group` uses nothing but the library it loads.
