"""Files of people into rows: CSV, XLSX and OFAC's SDN list. Reading happens where the file is, at the command line."""
