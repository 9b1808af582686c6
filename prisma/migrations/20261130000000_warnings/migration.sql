-- CreateTable
CREATE TABLE "Warning" (
    "kind" TEXT NOT NULL,
    "subject" TEXT NOT NULL,
    "since" TIMESTAMPTZ(6) NOT NULL,
    "detail" TEXT NOT NULL,
    "remedy" TEXT NOT NULL,

    CONSTRAINT "Warning_pkey" PRIMARY KEY ("kind","subject")
);
