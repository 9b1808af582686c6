-- AlterEnum
ALTER TYPE "BackfillOnly" ADD VALUE 'uncovered';
