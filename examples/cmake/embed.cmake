# Write the bytes of FROM to TO as the inside of a C array.
file(READ "${FROM}" bytes HEX)
string(REGEX REPLACE "(..)" "0x\\1," bytes "${bytes}")
file(WRITE "${TO}" "${bytes}")
